//! A container that serves: from what its pod asks for to a bound port.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use wasmtime_wasi::filesystem::WasiFilesystemCtx;

use hearth_base::error::Result;
use hearth_observe::starts::About;
use hearth_stdio::Stdio;
use hearth_wasm::engine::LiveProgram;
use hearth_wasm::instantiate::shared_files;
use hearth_wasm::resolver::Names;
use hearth_wasm::runtime::Runtime;
use hearth_wasm::scheduler::Guest;
use hearth_wasm::wasi::MemoryUse;

use crate::context::Http;
use crate::counts::Counts;
use crate::lines::Marks;
use crate::notes::Notes;
use crate::outgoing::Outgoing;
use crate::outgoing::client::Client;
use crate::requests::Requests;
use crate::turns::Turns;
use crate::workers::{Reuse, Workers};
use crate::{connection, listener};

/// What a service is made from.
pub struct NewService {
    /// The component: what its next instance is made of.
    pub program: Arc<LiveProgram>,
    /// `argv` of each instance.
    pub args: Vec<String>,
    /// Its environment, which also says where it listens and what an instance may have.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub cwd: String,
    /// Its `/` on the host.
    pub root: PathBuf,
    /// Whether its `/`, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// How it looks up names.
    pub names: Option<Names>,
    /// The container's stdio.
    pub stdio: Arc<Stdio>,
    /// The container's memory.
    pub memory: Arc<MemoryUse>,
    /// The leader of the requests' guests: the listener's.
    pub guest: Arc<Guest>,
    /// Those under way.
    pub requests: Arc<Requests>,
    /// The container, for those who look.
    pub about: Arc<About>,
    /// Whether its pod has metrics of its own.
    pub by_pod: bool,
}

/// A container that serves.
pub struct Service {
    /// The component: what its next instance is made of.
    pub program: Arc<LiveProgram>,
    /// `argv` of each instance.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub cwd: String,
    /// Its files, open.
    pub files: WasiFilesystemCtx,
    /// Whether its `/`, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// How it looks up names.
    pub names: Option<Names>,
    /// The container's stdio.
    pub stdio: Arc<Stdio>,
    /// The container's memory.
    pub memory: Arc<MemoryUse>,
    /// The leader of the requests' guests: the listener's.
    pub guest: Arc<Guest>,
    /// Those under way.
    pub requests: Arc<Requests>,
    /// How many at once.
    pub turns: Turns,
    /// Instances that may have several requests; of a component of WASI 0.3 only.
    pub workers: Option<Workers>,
    /// What becomes of its requests to others.
    pub outgoing: Outgoing,
    /// What its lines begin with.
    pub marks: Marks,
    /// What is counted.
    pub counts: Arc<Counts>,
    /// The daemon's words.
    pub notes: Notes,
    /// The container, for those who look.
    pub about: Arc<About>,
    /// What all services share.
    pub http: Arc<Http>,
    /// What all guests share.
    pub runtime: Arc<Runtime>,
}

/// A service whose port is bound and not served yet.
pub struct Bound {
    service: Arc<Service>,
    listeners: Vec<TcpListener>,
}

impl Bound {
    /// Serves until the container drains or ends.
    pub fn serve(self) {
        connection::serve(self.service, self.listeners);
    }
}

impl Service {
    /// Opens its files and binds its port. For the service's own guest, while it is polled.
    ///
    /// # Errors
    /// What is wrong with the environment, the root or the port, in one line.
    pub async fn bind(http: &Arc<Http>, runtime: &Arc<Runtime>, new: NewService) -> Result<Bound> {
        let env = &new.env;
        let workers = match new.program.now().serves_p3(&runtime.engines)? {
            true => Some(Workers::new(Reuse::of(env)?)),
            false => {
                // What is wrong in it is told for a component of WASI 0.2, too.
                Reuse::of(env)?;
                None
            }
        };
        let files = shared_files(&new.root)?;
        let listeners = listener::bind(http, env, new.guest.identity()).await?;
        let named = new.about.pod.as_ref().filter(|_| new.by_pod);
        let pod = named.map(|pod| runtime.metrics.http.pod([&pod.namespace, &pod.name, &pod.container]));
        let client = new.names.clone().map(|names| Client::new(http.clone(), names, env));
        let service = Service {
            files,
            workers,
            turns: Turns::new(&http.config()),
            outgoing: Outgoing::new(client),
            marks: Marks::of(env),
            counts: Arc::new(Counts::new(runtime.metrics.clone(), pod)),
            notes: Notes::default(),
            http: http.clone(),
            runtime: runtime.clone(),
            program: new.program,
            args: new.args,
            env: new.env,
            cwd: new.cwd,
            partly_read_only: new.partly_read_only,
            names: new.names,
            stdio: new.stdio,
            memory: new.memory,
            guest: new.guest,
            requests: new.requests,
            about: new.about,
        };
        Ok(Bound { service: Arc::new(service), listeners })
    }

    /// How many requests an instance may have at once.
    pub(crate) fn requests_per_instance(&self) -> usize {
        self.workers.as_ref().map_or(1, Workers::concurrent)
    }
}
