//! Programs from the node's daemon, for a process that neither compiles nor writes the module store: a cell.
//!
//! The daemon finds the module, compiles it if it has to, checks the artifact and sends a descriptor of it. This process
//! maps it as the daemon does, so that all processes of the node share the pages of a module's code. Programs are kept, the
//! least recently used removed first: a container that starts again needs no daemon.
//!
//! Each request is a connection of its own to a socket that only root can open. While no daemon listens there, as between
//! two daemons, a request tries again for `DAEMON_TIME`.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::known::KnownModule;
use super::lookup::{self, ProgramFile};
use super::origin::Origin;
use super::places::Place;
use super::programs::Programs;
use super::turns::Owner;
use super::{Loaded, blocking};
use crate::engine::{Engines, LiveProgram, ModuleKind, Tier};
use hearth_base::cell::{self, ModuleFile, ProgramFound, ProgramReply, ProgramRequest, program_reply, program_request};
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_base::generation::wire::{receive_descriptors, send_descriptors};
use hearth_base::wanted::Wanted;
use hearth_observe::metrics::{Metrics, Source};
use hearth_os::memfd;

/// How long a request waits for a daemon that listens.
const DAEMON_TIME: Duration = Duration::from_secs(10);

/// The pause before it looks for one again.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Programs, and places of programs, that are kept.
const KEPT_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// The programs of a cell.
pub struct RemotePrograms {
    inner: Arc<Inner>,
}

struct Inner {
    /// The daemon's socket.
    socket: PathBuf,
    engines: Arc<Engines>,
    metrics: Arc<Metrics>,
    runtime: Handle,
    kept: Mutex<LruCache<Digest, Arc<LiveProgram>>>,
    places: Mutex<LruCache<Place, KnownModule>>,
}

/// A program that the daemon has sent.
struct Received {
    program: Arc<LiveProgram>,
    found: ProgramFound,
    digest: Digest,
}

impl RemotePrograms {
    /// Programs for `engines` from the daemon at `socket`. Jobs that wait for it run on `runtime`.
    pub fn new(socket: PathBuf, engines: Arc<Engines>, metrics: Arc<Metrics>, runtime: Handle) -> Arc<RemotePrograms> {
        let (kept, places) = (Mutex::new(LruCache::new(KEPT_MAX)), Mutex::new(LruCache::new(KEPT_MAX)));
        Arc::new(RemotePrograms { inner: Arc::new(Inner { socket, engines, metrics, runtime, kept, places }) })
    }

    async fn ask(&self, body: program_request::Body, file: Option<OwnedFd>) -> Result<Option<Received>> {
        let inner = self.inner.clone();
        blocking(&self.inner.runtime, move || inner.ask(body, file)).await
    }
}

impl Inner {
    /// A program that is kept.
    fn kept(&self, digest: Digest, export: Option<Arc<str>>) -> Option<Loaded> {
        let program = self.kept.lock().get(&digest)?.clone();
        self.metrics.modules.lookup(Source::Warm);
        Some(Loaded { program, digest, export, source: Source::Warm, compile_time: None })
    }

    /// Asks the daemon; blocks.
    fn ask(&self, body: program_request::Body, file: Option<OwnedFd>) -> Result<Option<Received>> {
        let failed = |e: io::Error| Error::Unavailable(format!("hearthd did not give the pod's cell its program: {e}"));
        let mut stream = match UnixStream::connect(&self.socket) {
            Ok(stream) => stream,
            Err(_) => match file.as_ref().and_then(|file| self.kept_of(file)) {
                Some(received) => return Ok(Some(received)),
                None => self.connect()?,
            },
        };
        let request = ProgramRequest { fingerprint: self.engines.fingerprint().to_owned(), body: Some(body) };
        cell::write(&mut stream, &request).map_err(failed)?;
        if let Some(file) = &file {
            send_descriptors(&stream, &[file.as_fd()]).map_err(failed)?;
        }
        match cell::read::<ProgramReply>(&mut stream).map_err(failed)?.body {
            Some(program_reply::Body::Unknown(_)) => Ok(None),
            Some(program_reply::Body::Refused(refused)) => Err(refused.into()),
            Some(program_reply::Body::Program(found)) => {
                let artifact = receive_descriptors(&stream).map_err(failed)?.pop();
                let artifact = artifact.ok_or_else(|| Error::Internal("hearthd sent no artifact".into()))?;
                self.map(found, artifact.into()).map(Some)
            }
            None => Err(Error::Internal("hearthd answered in words that this cell does not know".into())),
        }
    }

    /// The kept program of a module's file, by the file's bytes: for a time without a daemon.
    fn kept_of(&self, file: &OwnedFd) -> Option<Received> {
        let file = file.try_clone().ok()?.into();
        let origin = Origin::File(ProgramFile { file, path: String::new(), export: None, on_root_mount: false });
        let digest = origin.scan(u64::MAX).ok()?.digest;
        let program = self.kept.lock().get(&digest)?.clone();
        Some(Received { program, found: ProgramFound::default(), digest })
    }

    /// Waits for a daemon that listens.
    fn connect(&self) -> Result<UnixStream> {
        let end = Instant::now() + DAEMON_TIME;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
                Err(e) if Instant::now() >= end => {
                    return Err(Error::Unavailable(format!(
                        "the pod's cell needs hearthd for its program, and none listens at {} ({e}): start it",
                        self.socket.display()
                    )));
                }
                Err(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    #[allow(unsafe_code, reason = "the one place where a cell makes code of an artifact; see the comment")]
    fn map(&self, found: ProgramFound, artifact: File) -> Result<Received> {
        let wrong = || Error::Internal("hearthd sent a digest of another length".into());
        let digest = Digest(found.digest.as_slice().try_into().map_err(|_| wrong())?);
        if let Some(program) = self.kept.lock().get(&digest) {
            return Ok(Received { program: program.clone(), found, digest });
        }
        let kind = if found.component { ModuleKind::Component } else { ModuleKind::Core };
        // SAFETY: the descriptor came from the daemon, by a socket that only root can bind and open. The daemon sends
        // artifacts of its module store only, which it has verified and maps itself: the compile process wrote them, and
        // no process writes to or truncates them.
        let program = unsafe { self.engines.load(artifact, kind, Tier::Optimised) }?;
        let program = Arc::new(LiveProgram::new(program));
        let evicted = self.kept.lock().push(digest, program.clone());
        // Its mappings go with its last task; not under the lock.
        drop(evicted);
        self.metrics.modules.prepared.set(self.kept.lock().len() as i64);
        Ok(Received { program, found, digest })
    }

    fn loaded(&self, received: Received, export: Option<Arc<str>>) -> Loaded {
        let Received { program, found, digest } = received;
        let source = Source::of(found.source);
        self.metrics.modules.lookup(source);
        let compile_time = found.compile_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Loaded { program, digest, export, source, compile_time }
    }
}

#[async_trait]
impl Programs for RemotePrograms {
    fn warm(&self, place: &Place) -> Option<Loaded> {
        let KnownModule { digest, export } = self.inner.places.lock().get(place)?.clone();
        self.inner.kept(digest, export)
    }

    async fn known(&self, place: &Place) -> Result<Option<Loaded>> {
        let received = self.ask(program_request::Body::Place(place.bytes().to_vec()), None).await?;
        Ok(received.map(|received| {
            let export: Option<Arc<str>> = received.found.export.as_deref().map(Arc::from);
            let known = KnownModule { digest: received.digest, export: export.clone() };
            self.inner.places.lock().put(*place, known);
            self.inner.loaded(received, export)
        }))
    }

    async fn known_digest(&self, digest: Digest, export: Option<Arc<str>>) -> Result<Option<Loaded>> {
        if let Some(loaded) = self.inner.kept(digest, export.clone()) {
            return Ok(Some(loaded));
        }
        let received = self.ask(program_request::Body::Digest(digest.0.to_vec()), None).await?;
        Ok(received.map(|received| self.inner.loaded(received, export)))
    }

    async fn find(&self, root: OwnedFd, wanted: Wanted) -> Result<ProgramFile> {
        blocking(&self.inner.runtime, move || lookup::find(root.as_fd(), &wanted)).await
    }

    async fn load(&self, origin: Origin, place: Option<Place>, _: Owner) -> Result<Loaded> {
        let name = origin.name().to_owned();
        let named = |e: Error| e.context(&name);
        let (file, export, place, promised) = match origin {
            Origin::File(ProgramFile { file, export, on_root_mount, .. }) => {
                (file, export, place.filter(|_| on_root_mount), None)
            }
            Origin::Layer { digest, bytes, export, .. } => {
                let copy = move || -> io::Result<File> {
                    let mut file = memfd::create("hearth-wasm")?;
                    file.write_all(&bytes)?;
                    memfd::seal(&file)?;
                    Ok(file)
                };
                let failed = |e: io::Error| Error::Internal(format!("cannot copy it into memory: {e}"));
                let file = blocking(&self.inner.runtime, move || copy().map_err(failed)).await.map_err(named)?;
                (file, export, place, Some(digest))
            }
        };
        let request = ModuleFile {
            name: name.clone(),
            place: place.map(|place| place.bytes().to_vec()).unwrap_or_default(),
            export: export.as_deref().map(str::to_owned),
        };
        // The daemon puts the name before its messages.
        let received = self.ask(program_request::Body::File(request), Some(file.into())).await?;
        let received = received.ok_or_else(|| Error::Internal("hearthd knows no module of a file".into()))?;
        if promised.is_some_and(|promised| promised != received.digest) {
            return Err(named(Error::InvalidArgument(format!(
                "the layer hashes to {:?}, its manifest says otherwise: pull the image again",
                received.digest
            ))));
        }
        if let Some(place) = place {
            self.inner.places.lock().put(place, KnownModule { digest: received.digest, export: export.clone() });
        }
        Ok(self.inner.loaded(received, export))
    }

    async fn known_component(&self, _: Digest) -> Result<Option<Loaded>> {
        Ok(None)
    }

    async fn load_component(&self, _: Origin, _: Owner) -> Result<Loaded> {
        Err(Error::FailedPrecondition(
            "a Spin application has no isolation level pod: run its pod with the level node".into(),
        ))
    }
}
