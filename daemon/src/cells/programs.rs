//! Gives cells their programs: finds a module, has it compiled, and sends the checked artifact as a descriptor.
//!
//! A cell may be in the hands of a guest that has broken out of its sandbox. So each connection is bounded in time and size,
//! the number of connections is bounded, and nothing that a cell says is believed beyond its own pod: the daemon hashes the
//! file itself, and remembers a place for it only while no guest can have run in that cell.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use rustix::fs::FileType;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::server::framed;
use hearth_base::cell::{
    MESSAGE_BYTES_MAX, ModuleFile, ProgramFound, ProgramReply, ProgramRequest, Refused, Unknown, program_reply,
    program_request,
};
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_base::generation::wire::{receive_descriptors, send_descriptors};
use hearth_os::accept::Acceptor;
use hearth_wasm::engine::{ModuleKind, Tier};
use hearth_wasm::modules::lookup::ProgramFile;
use hearth_wasm::modules::origin::Origin;
use hearth_wasm::modules::places::Place;
use hearth_wasm::modules::turns::Owner;
use hearth_wasm::modules::{Loaded, ModuleStore};

/// Requests at once; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 256;

/// How long a cell may take to ask, and to take the answer.
const WORD_TIME: Duration = Duration::from_secs(5);

/// Gives programs to cells.
pub struct ProgramServer {
    modules: Arc<ModuleStore>,
    fingerprint: String,
    /// The cells that this daemon has made, by process id.
    cells: Mutex<HashMap<u32, Cell>>,
}

/// A cell that this daemon has made.
struct Cell {
    /// The pod that it is for, by the spec that containerd wrote.
    owner: Owner,
    /// Whether no guest can have run in it yet.
    is_unspoilt: bool,
}

impl ProgramServer {
    /// From this store, with artifacts of this engine.
    pub fn new(modules: Arc<ModuleStore>, fingerprint: &str) -> Arc<ProgramServer> {
        Arc::new(ProgramServer { modules, fingerprint: fingerprint.to_owned(), cells: Mutex::default() })
    }

    /// A cell has been given its orders for the pod `owner`: until it gets a program, no guest runs in it.
    pub fn begun(&self, pid: u32, owner: Owner) {
        self.cells.lock().insert(pid, Cell { owner, is_unspoilt: true });
    }

    /// A cell has ended.
    pub fn ended(&self, pid: u32) {
        self.cells.lock().remove(&pid);
    }

    /// Whether it can be believed where a program lies: no guest can have run in it yet.
    fn believes(&self, pid: u32) -> bool {
        self.cells.lock().get(&pid).is_some_and(|cell| cell.is_unspoilt)
    }

    /// On whose behalf a cell's modules are compiled. A cell of an earlier daemon is known by its process alone, and has
    /// the share of a namespace.
    fn owner(&self, pid: u32) -> Owner {
        let cells = self.cells.lock();
        cells.get(&pid).map_or_else(|| Owner::new(&format!("process {pid}"), ""), |cell| cell.owner.clone())
    }

    /// A cell gets a program: from here on a guest may run in it.
    fn gives(&self, pid: u32) {
        if let Some(cell) = self.cells.lock().get_mut(&pid) {
            cell.is_unspoilt = false;
        }
    }

    /// Serves for ever; cancel by dropping.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        let acceptor = Acceptor::new(listener, CONNECTIONS_MAX, "programs socket");
        let answer = |stream| {
            let server = self.clone();
            async move { server.answer(stream).await }
        };
        acceptor.serve(answer).await;
    }

    async fn answer(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let peer = stream.peer_cred()?;
        if peer.uid() != 0 {
            return Ok(());
        }
        let pid = peer.pid().unwrap_or_default().unsigned_abs();
        let (request, file) = tokio::time::timeout(WORD_TIME, read(&mut stream)).await??;
        let found = self.find(request, file, pid).await;
        let (body, artifact) = match found {
            Ok(Some((found, artifact))) => (program_reply::Body::Program(found), Some(artifact)),
            Ok(None) => (program_reply::Body::Unknown(Unknown {}), None),
            Err(error) => (program_reply::Body::Refused(Refused::from(&error)), None),
        };
        let reply = hearth_shim::frame(&ProgramReply { body: Some(body) }.encode_to_vec(), MESSAGE_BYTES_MAX)?;
        let say = async {
            stream.write_all(&reply).await?;
            if let Some(artifact) = &artifact {
                stream.async_io(Interest::WRITABLE, || send_descriptors(&stream, &[artifact.as_fd()])).await?;
            }
            Ok(())
        };
        tokio::time::timeout(WORD_TIME, say).await?
    }

    async fn find(
        &self,
        request: ProgramRequest,
        file: Option<OwnedFd>,
        pid: u32,
    ) -> Result<Option<(ProgramFound, File)>> {
        if request.fingerprint != self.fingerprint {
            return Err(Error::Unavailable(
                "the pod's process is of another release of hearthd, whose compiled code this one has not; delete the pod, so that it is made anew".into(),
            ));
        }
        let loaded = match request.body {
            Some(program_request::Body::Place(bytes)) => {
                self.modules.known(&place(&bytes)?).await?.filter(is_optimised)
            }
            Some(program_request::Body::Digest(bytes)) => {
                let digest = Digest(bytes.as_slice().try_into().map_err(|_| wrong("a digest has 32 bytes"))?);
                self.modules.known_digest(digest, None).await?.filter(is_optimised)
            }
            Some(program_request::Body::File(asked)) => Some(self.load(asked, file, pid).await?),
            None => return Err(wrong("it asks for nothing that this release knows")),
        };
        let Some(loaded) = loaded else { return Ok(None) };
        self.gives(pid);
        let program = loaded.program.now();
        let found = ProgramFound {
            digest: loaded.digest.0.to_vec(),
            component: program.kind() == ModuleKind::Component,
            export: loaded.export.as_deref().map(str::to_owned),
            source: loaded.source as u32,
            compile_seconds: loaded.compile_time.map(|time| time.as_secs_f64()),
        };
        Ok(Some((found, program.artifact()?)))
    }

    async fn load(&self, asked: ModuleFile, file: Option<OwnedFd>, pid: u32) -> Result<Loaded> {
        let file = File::from(file.ok_or_else(|| wrong("it names a file and sends none"))?);
        let stat = rustix::fs::fstat(&file).map_err(|e| Error::Internal(format!("a cell's file: {e}")))?;
        // Reading anything else can block for ever, or have effects.
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(wrong("the module is no regular file"));
        }
        let place = match asked.place.as_slice() {
            [] => None,
            bytes => Some(place(bytes)?),
        };
        let believed = self.believes(pid);
        let found = ProgramFile {
            file,
            path: asked.name,
            export: asked.export.as_deref().map(Arc::from),
            on_root_mount: believed,
        };
        self.modules.load_optimised(Origin::File(found), place.filter(|_| believed), self.owner(pid)).await
    }
}

fn is_optimised(loaded: &Loaded) -> bool {
    loaded.program.now().tier() == Tier::Optimised
}

fn place(bytes: &[u8]) -> Result<Place> {
    Ok(Place::of_bytes(bytes.try_into().map_err(|_| wrong("a place has 32 bytes"))?))
}

fn wrong(what: &str) -> Error {
    Error::InvalidArgument(format!("a cell's request for a program: {what}"))
}

async fn read(stream: &mut UnixStream) -> std::io::Result<(ProgramRequest, Option<OwnedFd>)> {
    let request: ProgramRequest = framed::read(stream, MESSAGE_BYTES_MAX).await?;
    let file = match request.body {
        Some(program_request::Body::File(_)) => {
            stream.async_io(Interest::READABLE, || receive_descriptors(&*stream)).await?.pop()
        }
        _ => None,
    };
    Ok((request, file))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;
    use hearth_base::cell;
    use hearth_base::config::{Baseline, Config};
    use hearth_observe::metrics::Metrics;
    use hearth_wasm::engine::Engines;
    use tokio::runtime::Handle;

    /// A server on a socket of its own, with an empty store, and its engine's fingerprint.
    struct Fixture {
        directory: tempfile::TempDir,
        fingerprint: String,
        server: Arc<ProgramServer>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            let mut config = Config { root_dir: directory.path().join("lib"), ..Config::default() };
            config.engine.pool_slots = 2;
            let metrics = Arc::new(Metrics::new());
            let engines = Arc::new(Engines::new(&config.engine, Baseline::Never, &[]).unwrap());
            let fingerprint = engines.fingerprint().to_owned();
            let modules = ModuleStore::open(&config, engines, metrics, Handle::current()).unwrap();
            let server = ProgramServer::new(modules, &fingerprint);
            let listener = hearth_os::sockets::bind(&directory.path().join("s")).unwrap();
            tokio::spawn(server.clone().serve(listener));
            Fixture { directory, fingerprint, server }
        }

        async fn send(&self, bytes: Vec<u8>, file: Option<File>) -> Option<program_reply::Body> {
            let path = self.directory.path().join("s");
            let exchange = move || {
                let mut stream = StdStream::connect(path).unwrap();
                stream.write_all(&bytes).unwrap();
                if let Some(file) = file {
                    send_descriptors(&stream, &[file.as_fd()]).unwrap();
                }
                let reply: ProgramReply = cell::read(&mut stream).ok()?;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest);
                reply.body
            };
            tokio::task::spawn_blocking(exchange).await.unwrap()
        }

        async fn ask(&self, body: program_request::Body, file: Option<File>) -> Option<program_reply::Body> {
            let request = ProgramRequest { fingerprint: self.fingerprint.clone(), body: Some(body) };
            self.send(hearth_shim::frame(&request.encode_to_vec(), MESSAGE_BYTES_MAX).unwrap(), file).await
        }
    }

    fn refusal(body: Option<program_reply::Body>) -> String {
        match body {
            Some(program_reply::Body::Refused(refused)) => refused.text,
            other => panic!("{other:?}"),
        }
    }

    fn file(place: Vec<u8>) -> program_request::Body {
        program_request::Body::File(ModuleFile { name: "/x.wasm".into(), place, export: None })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cell_that_sends_anything_gets_nothing_and_harms_no_other() {
        let fixture = Fixture::new();
        for bytes in [vec![0xff; 64], vec![3, 0, 0, 0, 0xff, 0xff, 0xff], vec![0; 8]] {
            let reply = fixture.send(bytes, None).await;
            assert!(!matches!(reply, Some(program_reply::Body::Program(_) | program_reply::Body::Unknown(_))));
        }
        let (read, _write) = std::io::pipe().unwrap();
        let pipe = File::from(OwnedFd::from(read));
        assert!(refusal(fixture.ask(file(Vec::new()), Some(pipe)).await).contains("no regular file"));
        let text = File::open("/proc/self/cmdline").unwrap();
        let passwd = File::open("/etc/passwd").unwrap();
        for other in [text, passwd] {
            refusal(fixture.ask(file(Vec::new()), Some(other)).await);
        }
        let passwd = File::open("/etc/passwd").unwrap();
        assert!(refusal(fixture.ask(file(vec![1; 31]), Some(passwd)).await).contains("32 bytes"));
        for short in [program_request::Body::Place(vec![0; 5]), program_request::Body::Digest(vec![0; 40])] {
            assert!(refusal(fixture.ask(short, None).await).contains("32 bytes"));
        }
        let old = ProgramRequest { fingerprint: "other".into(), body: Some(program_request::Body::Place(vec![0; 32])) };
        let bytes = hearth_shim::frame(&old.encode_to_vec(), MESSAGE_BYTES_MAX).unwrap();
        assert!(refusal(fixture.send(bytes, None).await).contains("another release"));
        // The server still answers.
        let unknown = fixture.ask(program_request::Body::Digest(vec![0; 32]), None).await;
        assert!(matches!(unknown, Some(program_reply::Body::Unknown(_))), "{unknown:?}");
    }

    #[tokio::test]
    async fn only_a_cell_without_a_guest_teaches_where_a_program_lies() {
        let Fixture { server, .. } = Fixture::new();
        assert!(!server.believes(7), "it is no cell of this daemon");
        server.begun(7, Owner::new("shop", "web"));
        server.begun(8, Owner::default());
        assert!(server.believes(7));
        server.gives(7);
        assert!(!server.believes(7) && server.believes(8));
        assert_eq!((server.owner(7), server.owner(9)), (Owner::new("shop", "web"), Owner::new("process 9", "")));
        server.ended(8);
        assert!(!server.believes(8), "another process may have its id");
    }
}
