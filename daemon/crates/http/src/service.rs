//! A container that serves HTTP: from the environment that its pod sets to a bound port.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use wasmtime_wasi::filesystem::WasiFilesystemCtx;

use hearth_base::error::{Error, Result};
use hearth_observe::starts::About;
use hearth_stdio::Stdio;
use hearth_wasm::access::Access;
use hearth_wasm::budget::Descriptors;
use hearth_wasm::engine::LiveProgram;
use hearth_wasm::instantiate::shared_files;
use hearth_wasm::memory::MemoryUse;
use hearth_wasm::resolver::Names;
use hearth_wasm::runtime::Runtime;
use hearth_wasm::scheduler::Guest;

use crate::access_log::AccessLog;
use crate::admission::RequestAdmission;
use crate::context::Http;
use crate::counts::Counts;
use crate::daemon_notes::DaemonNotes;
use crate::lines::Marks;
use crate::listener;
use crate::outgoing::Outgoing;
use crate::outgoing::client::Client;
use crate::requests::Requests;
use crate::shared_instances::{Reuse, SharedInstances};
use crate::tls::ServerTls;

/// The environment variable with which a pod asks for the service of a component that is a command, too.
pub const SERVE: &str = "HEARTH_HTTP";

/// Whether the environment asks that the component serves (`HEARTH_HTTP=serve`).
///
/// # Errors
/// `InvalidArgument` if the variable has another value.
pub fn asked(env: &[(String, String)]) -> Result<bool> {
    match env.iter().rev().find(|(name, _)| name == SERVE).map(|(_, value)| value.trim()) {
        None | Some("") => Ok(false),
        Some("serve") => Ok(true),
        Some(value) => Err(Error::InvalidArgument(format!("{SERVE}={value:?} is not \"serve\""))),
    }
}

/// The parts that a service is made from.
pub struct NewService {
    /// The component: the next instance is made of its best code so far.
    pub program: Arc<LiveProgram>,
    /// `argv` of each instance.
    pub args: Vec<String>,
    /// Its environment, which also says where it listens and how many requests an instance may have.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub cwd: String,
    /// Its `/` on the host.
    pub root: PathBuf,
    /// Whether its `/`, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// How it looks up names.
    pub names: Option<Names>,
    /// What it may use beyond its files.
    pub access: Access,
    /// The container's stdio.
    pub stdio: Arc<Stdio>,
    /// The container's memory.
    pub memory: Arc<MemoryUse>,
    /// Files, directories and sockets that each of its guests may have open (`RLIMIT_NOFILE`).
    pub open_files_max: u32,
    /// Those of all its guests together.
    pub descriptors: Arc<Descriptors>,
    /// The leader of the requests' guests: the listener's.
    pub guest: Arc<Guest>,
    /// Its requests that are under way.
    pub requests: Arc<Requests>,
    /// The container, for messages, metrics and the status page.
    pub about: Arc<About>,
    /// Whether its pod has metrics of its own.
    pub by_pod: bool,
}

/// A container that serves.
pub struct Service {
    /// The component: the next instance is made of its best code so far.
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
    /// What it may use beyond its files.
    pub access: Access,
    /// The container's stdio.
    pub stdio: Arc<Stdio>,
    /// The container's memory.
    pub memory: Arc<MemoryUse>,
    /// Files, directories and sockets that each of its guests may have open (`RLIMIT_NOFILE`).
    pub open_files_max: u32,
    /// Those of all its guests together.
    pub descriptors: Arc<Descriptors>,
    /// The leader of the requests' guests: the listener's.
    pub guest: Arc<Guest>,
    /// Its requests that are under way.
    pub requests: Arc<Requests>,
    /// Which requests get an instance.
    pub admission: RequestAdmission,
    /// The instances of a component of WASI 0.3, which may have several requests; none for WASI 0.2.
    pub shared: Option<SharedInstances>,
    /// Sends the requests of its guests.
    pub outgoing: Outgoing,
    /// The log of its requests, if it has one.
    pub access_log: Option<AccessLog>,
    /// The number of instances made so far.
    pub instances: AtomicU64,
    /// TLS at its port, if it speaks TLS.
    pub tls: Option<ServerTls>,
    /// Marks that its output lines begin with.
    pub marks: Marks,
    /// Its metrics.
    pub counts: Arc<Counts>,
    /// Notes of the daemon in its stderr.
    pub notes: DaemonNotes,
    /// The container, for messages, metrics and the status page.
    pub about: Arc<About>,
    /// What all services share.
    pub http: Arc<Http>,
    /// What all guests share.
    pub runtime: Arc<Runtime>,
}

/// A service whose port is bound and not served yet; see [`crate::accept::serve`].
pub struct Bound {
    pub(crate) service: Arc<Service>,
    pub(crate) listeners: Vec<TcpListener>,
}

impl Service {
    /// Opens its files and binds its port. Has to be called in the future of the service's own guest.
    ///
    /// # Errors
    /// What is wrong with the environment, the root, the certificate or the port, in one line.
    pub async fn bind(http: &Arc<Http>, runtime: &Arc<Runtime>, new: NewService) -> Result<Bound> {
        let env = &new.env;
        let shared = match new.program.now().serves_p3(&runtime.engines)? {
            true => Some(SharedInstances::new(Reuse::of(env)?)),
            false => {
                // An error in the variables is told for a component of WASI 0.2, too.
                Reuse::of(env)?;
                None
            }
        };
        let files = shared_files(&new.root)?;
        let tls = ServerTls::of(http, env, new.root).await?;
        let listeners = listener::bind(http, env, new.guest.identity()).await?;
        let named = new.about.pod.as_ref().filter(|_| new.by_pod);
        let pod = named.map(|pod| runtime.metrics.http.pod([&pod.namespace, &pod.name, &pod.container]));
        let client = new.names.clone().map(|names| {
            let stdio = new.stdio.clone();
            let tell = Box::new(move |text: &str| stdio.write_stderr(&format!("hearth: {text}\n")));
            Client::new(http.outgoing.clone(), names, new.access.destinations.clone(), env, tell)
        });
        let service = Service {
            files,
            shared,
            tls,
            access_log: AccessLog::of(env)?,
            instances: AtomicU64::new(0),
            admission: RequestAdmission::new(&http.config(), http.places.join()),
            outgoing: Outgoing::new(client),
            marks: Marks::of(env),
            counts: Arc::new(Counts::new(runtime.metrics.clone(), pod)),
            notes: DaemonNotes::default(),
            http: http.clone(),
            runtime: runtime.clone(),
            program: new.program,
            args: new.args,
            env: new.env,
            cwd: new.cwd,
            partly_read_only: new.partly_read_only,
            names: new.names,
            access: new.access,
            stdio: new.stdio,
            memory: new.memory,
            open_files_max: new.open_files_max,
            descriptors: new.descriptors,
            guest: new.guest,
            requests: new.requests,
            about: new.about,
        };
        service.memory.reclaim_from(service.requests.spare.clone());
        Ok(Bound { service: Arc::new(service), listeners })
    }

    /// How many requests an instance may have at once.
    pub(crate) fn requests_per_instance(&self) -> usize {
        self.shared.as_ref().map_or(1, SharedInstances::concurrent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_asks_for_the_service_in_one_word() {
        let asked = |values: &[&str]| {
            let env: Vec<_> = values.iter().map(|value| (SERVE.to_string(), value.to_string())).collect();
            super::asked(&env)
        };
        assert!(!asked(&[]).unwrap() && !asked(&[""]).unwrap());
        assert!(asked(&["serve"]).unwrap() && asked(&["run", "serve"]).unwrap(), "the last value counts");
        let error = asked(&["serve", "run"]).unwrap_err().to_string();
        assert!(error.contains("HEARTH_HTTP=\"run\""), "{error}");
    }
}
