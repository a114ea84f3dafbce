//! From what Create names to a prepared program.
//!
//! ```text
//!  snapshot + program's name ─▶ Place ──known──▶ Digest ──prepared──▶ Program        warm: 1 µs, no file
//!                                 │ unknown        │ not in memory
//!                                 ▼                ▼
//!  root ─▶ lookup ─▶ file ──hash──────────────▶ artifact on disk ──checked, mapped──▶ Program
//!                                                  │ none
//!                                                  ▼
//!                                        compile process ─▶ artifact ─▶ disk ─▶ Program
//! ```
//!
//! * [`lookup`] finds the file inside its root, [`identify`] tells what it is, [`origin`] reads it.
//! * [`places`] are what a start can know without reading, [`known`] what was learnt about them.
//! * [`store`] keeps artifacts in a [`directory`] of root's own.
//! * [`compile`] is the daemon's side of the compile process, [`child`] its inside.
//!
//! One *flight* for each digest does all the work below the digest; whoever needs the same waits for
//! it. A flight belongs to nobody: a caller that goes away does not stop it. Failures are shared like
//! results. A module that cannot be compiled is remembered for a while, so that a container that is
//! restarted over and over costs one compile and not one each time. Running into a limit is not
//! remembered: with less load, or a changed configuration, it can work the next time.
//!
//! Only what the compile process wrote and [`store`] verified is ever mapped.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::metrics::{Metrics, Source};
use crate::wasm::engine::{Engines, Program};
use crate::wasm::modules::compile::Compiler;
use crate::wasm::modules::directory::{Directory, Opened};
use crate::wasm::modules::known::{Known, KnownPlaces};
use crate::wasm::modules::lookup::{Found, Wanted};
use crate::wasm::modules::origin::{Digest, Origin};
use crate::wasm::modules::places::{Place, is_settled};
use crate::wasm::modules::store::{Store, Used, Verified};

pub mod child;
pub mod compile;
pub mod directory;
pub mod identify;
pub mod known;
pub mod lookup;
pub mod origin;
pub mod places;
pub mod store;

#[cfg(test)]
pub(crate) mod samples;

/// How long a module that cannot be compiled is remembered: twice the longest pause kubelet makes
/// between two starts of a container that fails (five minutes).
const REJECTED_FOR: Duration = Duration::from_secs(600);

/// How many such modules are remembered.
const REJECTED_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The node's modules.
pub struct ModuleStore {
    rooms: Arc<Rooms>,
    runtime: Handle,
}

/// A program and how it was come by.
#[derive(Clone)]
pub struct Loaded {
    /// The program, shared with every other task that runs it.
    pub program: Arc<Program>,
    /// The export to call, if the program's name had one.
    pub export: Option<Arc<str>>,
    /// Where it came from.
    pub source: Source,
    /// How long its compile took, the time in the queue included, if there was one.
    pub compile_time: Option<Duration>,
}

/// What all of the store's jobs share.
struct Rooms {
    engines: Arc<Engines>,
    compiler: Compiler,
    store: Store,
    places: KnownPlaces,
    prepared: Mutex<LruCache<Digest, Prepared>>,
    rejected: Mutex<LruCache<Digest, (Instant, Error)>>,
    flights: Mutex<HashMap<(Digest, Depth), Flight>>,
    module_bytes_max: u64,
    metrics: Arc<Metrics>,
}

/// A program kept in memory.
#[derive(Clone)]
struct Prepared {
    program: Arc<Program>,
    used: Arc<Used>,
}

/// How far a flight goes for its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Depth {
    /// To the disk: nobody has the bytes.
    Disk,
    /// To the compiler.
    Compile,
}

/// What a flight brings. None: it went to the disk only, and there was nothing.
type Outcome = Result<Option<Landed>>;

/// Work on one digest that everybody who needs it waits for.
type Flight = Shared<BoxFuture<'static, Outcome>>;

/// A flight's result.
#[derive(Clone)]
struct Landed {
    prepared: Prepared,
    source: Source,
    compile_time: Option<Duration>,
}

impl ModuleStore {
    /// Opens the store below `config.root_dir`. Without a usable disk it works from memory.
    ///
    /// # Errors
    /// `FailedPrecondition` if others could have written to the store's directory.
    pub fn open(config: &Config, engines: Arc<Engines>, metrics: Arc<Metrics>, runtime: Handle) -> Result<Arc<ModuleStore>> {
        let compiler = Compiler::new(config.modules.clone(), config.engine.clone(), metrics.clone());
        ModuleStore::open_with(config, engines, metrics, runtime, compiler)
    }

    fn open_with(
        config: &Config,
        engines: Arc<Engines>,
        metrics: Arc<Metrics>,
        runtime: Handle,
        compiler: Compiler,
    ) -> Result<Arc<ModuleStore>> {
        let directory = match Directory::open(&config.root_dir)? {
            Opened::Disk(directory) => Some(Arc::new(directory)),
            Opened::Unusable(reason) => {
                tracing::warn!(reason, "no module store on disk: every module is compiled again after a restart; see root_dir");
                None
            }
        };
        let limits = &config.modules;
        let rooms = Rooms {
            store: Store::open(directory.clone(), engines.fingerprint(), limits.store_bytes_max, metrics.clone()),
            places: KnownPlaces::open(directory, limits.places_max),
            prepared: Mutex::new(LruCache::sparse(NonZeroUsize::new(limits.prepared_max).unwrap_or(NonZeroUsize::MIN))),
            rejected: Mutex::new(LruCache::sparse(REJECTED_MAX)),
            flights: Mutex::default(),
            module_bytes_max: limits.module_bytes_max,
            engines,
            compiler,
            metrics,
        };
        Ok(Arc::new(ModuleStore { rooms: Arc::new(rooms), runtime }))
    }

    /// The program in `place`, if it is known and prepared. Waits for nothing; about a microsecond.
    pub fn warm(&self, place: &Place) -> Option<Loaded> {
        let Known { digest, export } = self.rooms.places.get(place)?;
        Some(Loaded { export, ..self.warm_digest(digest)? })
    }

    /// The program of `digest`, if it is prepared. As [`ModuleStore::warm`].
    pub fn warm_digest(&self, digest: Digest) -> Option<Loaded> {
        let prepared = self.rooms.prepared(digest)?;
        Some(self.rooms.loaded(Landed { prepared, source: Source::Warm, compile_time: None }))
    }

    /// The program in `place` without its file: from memory, or from a compiled artifact on disk. None
    /// if that takes the file.
    ///
    /// # Errors
    /// `InvalidArgument` if the program has an import that Hearth does not offer.
    pub async fn known(&self, place: &Place) -> Result<Option<Loaded>> {
        let Some(Known { digest, export }) = self.rooms.places.get(place) else { return Ok(None) };
        Ok(self.known_digest(digest).await?.map(|loaded| Loaded { export, ..loaded }))
    }

    /// The program of `digest`, as [`ModuleStore::known`].
    ///
    /// # Errors
    /// As [`ModuleStore::known`].
    pub async fn known_digest(&self, digest: Digest) -> Result<Option<Loaded>> {
        let landed = self.fly(digest, None).await?;
        Ok(landed.map(|landed| self.rooms.loaded(landed)))
    }

    /// Finds the program's file in the directory `root`, with the container's volumes mounted in it.
    ///
    /// # Errors
    /// `InvalidArgument` with what was tried, or why a name was refused.
    pub async fn find(&self, root: OwnedFd, wanted: Wanted) -> Result<Found> {
        self.blocking(move || lookup::find(root.as_fd(), &wanted)).await
    }

    /// The program that `origin` is, by the shortest way there is. Remembers that it is what lies in
    /// `place`, if the search for it depended on nothing else.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not WebAssembly, invalid, or has an import that Hearth does not
    /// offer; `ResourceExhausted` if a limit was in its way; `Unavailable` if it changed meanwhile.
    /// Each message starts with the origin's name.
    pub async fn load(&self, origin: Origin, place: Option<Place>) -> Result<Loaded> {
        let origin = Arc::new(origin);
        let named = |e: Error| e.context(origin.name());
        let (export, place) = match &*origin {
            Origin::File(found) => (found.export.clone(), place.filter(|_| found.on_root_mount)),
            Origin::Layer { .. } => (None, place),
        };
        let (rooms, opened) = (self.rooms.clone(), origin.clone());
        let read = self.blocking(move || rooms.read(&opened)).await.map_err(named)?;
        let landed = self.fly(read.digest, Some(origin.clone())).await.map_err(named)?;
        let landed = landed.ok_or_else(|| Error::Internal("a flight with bytes came back with nothing".into()))?;
        let lessons: Vec<_> = [(place, export.clone()), (read.lesson, None)]
            .into_iter()
            .filter_map(|(place, export)| Some((place?, Known { digest: read.digest, export })))
            .filter(|(place, known)| self.rooms.places.get(place).as_ref() != Some(known))
            .collect();
        if !lessons.is_empty() {
            let rooms = self.rooms.clone();
            self.blocking(move || {
                lessons.into_iter().for_each(|(place, known)| rooms.places.learn(place, known));
                Ok(())
            })
            .await?;
        }
        Ok(Loaded { export, ..self.rooms.loaded(landed) })
    }

    /// Joins the flight for `digest`, or starts it.
    async fn fly(&self, digest: Digest, origin: Option<Arc<Origin>>) -> Outcome {
        if let Some(prepared) = self.rooms.prepared(digest) {
            return Ok(Some(Landed { prepared, source: Source::Warm, compile_time: None }));
        }
        let depth = if origin.is_some() { Depth::Compile } else { Depth::Disk };
        let flight = {
            let mut flights = self.rooms.flights.lock();
            flights.entry((digest, depth)).or_insert_with(|| self.start_flight(digest, depth, origin)).clone()
        };
        flight.await
    }

    fn start_flight(&self, digest: Digest, depth: Depth, origin: Option<Arc<Origin>>) -> Flight {
        /// Takes the flight off the list, also when it crashes.
        struct Listed(Arc<Rooms>, (Digest, Depth));
        impl Drop for Listed {
            fn drop(&mut self) {
                self.0.flights.lock().remove(&self.1);
            }
        }
        let listed = Listed(self.rooms.clone(), (digest, depth));
        let (rooms, runtime) = (self.rooms.clone(), self.runtime.clone());
        let job = self.runtime.spawn(async move {
            let outcome = rooms.bring(&runtime, digest, origin).await;
            // First it is prepared, then the flight ends: who comes in between finds the one or the other.
            drop(listed);
            outcome
        });
        let ended = |e| Error::Internal(format!("preparing a module ended early: {e}"));
        job.map(move |outcome| outcome.map_err(ended)?).boxed().shared()
    }

    async fn blocking<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        blocking(&self.runtime, job).await
    }
}

async fn blocking<T: Send + 'static>(runtime: &Handle, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = |e| Error::Internal(format!("reading a module ended early: {e}"));
    runtime.spawn_blocking(job).await.map_err(ended)?
}

/// What opening an origin told.
struct Read {
    digest: Digest,
    /// The file's own place, if its content has just been found out and will stay so.
    lesson: Option<Place>,
}

impl Rooms {
    fn prepared(&self, digest: Digest) -> Option<Prepared> {
        let prepared = self.prepared.lock().get(&digest)?.clone();
        prepared.used.now();
        Some(prepared)
    }

    fn loaded(&self, landed: Landed) -> Loaded {
        self.metrics.lookup(landed.source);
        Loaded {
            program: landed.prepared.program,
            export: None,
            source: landed.source,
            compile_time: landed.compile_time,
        }
    }

    /// What `origin` hashes to; read only if its place does not tell. Blocks.
    fn read(&self, origin: &Origin) -> Result<Read> {
        let place = match origin {
            Origin::File(found) => Place::of_file(&found.file),
            Origin::Layer { .. } => None,
        };
        if let Some(Known { digest, .. }) = place.and_then(|place| self.places.get(&place)) {
            return Ok(Read { digest, lesson: None });
        }
        self.metrics.module_reads.inc();
        let began = SystemTime::now();
        let scanned = origin.scan(self.module_bytes_max)?;
        let lesson = match origin {
            // Unchanged while it was read, and long enough before that a change would show.
            Origin::File(found) if Place::of_file(&found.file) == place && is_settled(&found.file, began) => place,
            _ => None,
        };
        Ok(Read { digest: scanned.digest, lesson })
    }

    /// The work of a flight.
    async fn bring(self: &Arc<Self>, runtime: &Handle, digest: Digest, origin: Option<Arc<Origin>>) -> Outcome {
        // Somebody's flight may have landed since its caller looked.
        if let Some(prepared) = self.prepared(digest) {
            return Ok(Some(Landed { prepared, source: Source::Warm, compile_time: None }));
        }
        let rooms = self.clone();
        if let Some(prepared) = blocking(runtime, move || rooms.from_disk(digest)).await? {
            return Ok(Some(Landed { prepared, source: Source::Disk, compile_time: None }));
        }
        let Some(origin) = origin else { return Ok(None) };
        if let Some(error) = self.rejected(digest, Instant::now()) {
            return Err(error);
        }
        let (began, bytes_max) = (Instant::now(), self.module_bytes_max);
        let compiled = self.compiler.compile(move || origin.to_memory(digest, bytes_max)).await;
        let (artifact, kind) = compiled.inspect_err(|error| self.reject(digest, error))?;
        let compile_time = Some(began.elapsed());
        let rooms = self.clone();
        let prepared = blocking(runtime, move || {
            rooms.prepare(digest, rooms.store.put(digest, kind, artifact)).inspect_err(|error| {
                // Its compile would only give the same again.
                if matches!(error, Error::Internal(_)) {
                    rooms.store.discard(digest, &error.to_string());
                    rooms.remember_rejected(digest, error.clone(), Instant::now());
                }
            })
        })
        .await?;
        Ok(Some(Landed { prepared, source: Source::Compiled, compile_time }))
    }

    /// Prepares an artifact from the disk, if there is one that is good. Blocks.
    fn from_disk(&self, digest: Digest) -> Result<Option<Prepared>> {
        let Some(verified) = self.store.get(digest) else { return Ok(None) };
        match self.prepare(digest, verified) {
            Ok(prepared) => Ok(Some(prepared)),
            // wasmtime does not take what our code says is whole.
            Err(Error::Internal(why)) => {
                self.store.discard(digest, &why);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Maps and links a verified artifact, and keeps it. Blocks.
    #[allow(unsafe_code, reason = "the one place where artifacts become code; see the comment")]
    fn prepare(&self, digest: Digest, artifact: Verified) -> Result<Prepared> {
        let Verified { file, kind, used } = artifact;
        // SAFETY: a `Verified` holds either the open file whose bytes the store has just checked
        // against a code made with root's own key, which it gives only to what the compile process
        // wrote; or a sealed memory file with such bytes. Nobody can write to the latter. The former
        // lies in a directory that is root's alone, in which files are replaced and removed but never
        // written to or truncated, which holds for the open file as long as it is mapped.
        let program = unsafe { self.engines.load(file, kind) }?;
        let prepared = Prepared { program: Arc::new(program), used };
        let (kept, evicted) = {
            let mut all = self.prepared.lock();
            // A flight to the disk and one to the compiler may both have been under way.
            match all.get(&digest).cloned() {
                Some(first) => (first, Some((digest, prepared))),
                None => (prepared.clone(), all.push(digest, prepared)),
            }
        };
        // Its mappings go with its last task; not under the lock.
        drop(evicted);
        self.metrics.modules_prepared.set(self.prepared.lock().len() as i64);
        Ok(kept)
    }

    /// Why a module was rejected a while ago.
    fn rejected(&self, digest: Digest, now: Instant) -> Option<Error> {
        let mut rejected = self.rejected.lock();
        let (since, error) = rejected.get(&digest)?;
        if now.duration_since(*since) < REJECTED_FOR {
            return Some(error.clone());
        }
        rejected.pop(&digest);
        None
    }

    fn reject(&self, digest: Digest, error: &Error) {
        if matches!(error, Error::InvalidArgument(_)) {
            self.remember_rejected(digest, error.clone(), Instant::now());
        }
    }

    fn remember_rejected(&self, digest: Digest, error: Error, now: Instant) {
        self.rejected.lock().put(digest, (now, error));
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        self.store.save_times();
    }
}
