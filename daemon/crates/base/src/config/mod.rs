//! The daemon's configuration: a TOML file, over which command-line flags go, checked before any socket is bound. The
//! name of a limit ends with its unit.
//!
//! Each section has a file with its keys, their defaults and its `check`:
//!
//! * [`ahead`]: compiling the modules of images before a pod is started from them.
//! * [`engine`]: wasmtime's engines: the pool's slots and its address space, guests beyond it, memories, tables, stacks.
//! * [`events`]: the queue of events to a containerd, and retries of their delivery.
//! * [`files`]: volumes of a task, the size of a tmpfs.
//! * [`http`]: requests and time-outs of HTTP components, and of the requests that guests send.
//! * [`interfaces`]: key-value stores, databases and messages of guests.
//! * [`isolation`]: which process runs a pod's guests; processes made in advance.
//! * [`log`]: the log's level and form, and the lines kept for `hearthctl logs`.
//! * [`memory`]: the behaviour of the daemon near the memory limit of its control group.
//! * [`metrics`]: the endpoint for Prometheus, probes and people.
//! * [`modules`]: the module store and the compile processes.
//! * [`native`]: native containers in a pod.
//! * [`network`]: look-ups of names, network namespaces made in advance.
//! * [`rpc`]: threads of the Task API server, the number of tasks and namespaces.
//! * [`sandboxer`]: the sandbox controller's sockets for containerd 2.x.
//! * [`scheduler`]: worker threads, a guest's turn, the time after which a worker counts as blocked.
//! * [`stdio`]: guests' standard streams, log programs, unread output.
//! * [`tenant`]: limits of the things that one container takes from the node, by kind.
//! * [`upgrade`]: old daemons beside a new one, the drain before a stop.
//! * `explain.rs`: the text of an error in a file, and the key that was probably meant.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

pub use ahead::Ahead;
pub use engine::Engine;
pub use events::{EVENTS_PER_TASK, Events};
pub use files::Files;
pub use http::{Http, TlsRoots};
pub use interfaces::Interfaces;
pub use isolation::Isolation;
pub use log::{Log, LogFormat};
pub use memory::Memory;
pub use metrics::{Metrics, UNIX};
pub use modules::{Baseline, Modules};
pub use native::Native;
pub use network::Network;
pub use rpc::Rpc;
pub use sandboxer::{Sandboxer, SandboxerSocket};
pub use scheduler::Scheduler;
pub use stdio::Stdio;
pub use tenant::Tenant;
pub use upgrade::Upgrade;

pub mod ahead;
pub mod engine;
pub mod events;
mod explain;
pub mod files;
pub mod http;
pub mod interfaces;
pub mod isolation;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod modules;
pub mod native;
pub mod network;
pub mod rpc;
pub mod sandboxer;
pub mod scheduler;
pub mod stdio;
pub mod tenant;
#[cfg(test)]
mod tests;
pub mod upgrade;

/// All settings of the daemon. An unknown key is an error.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Sockets and scratch files, which a reboot removes. Sockets lie below it, so it is at most
    /// [`STATE_DIR_BYTES_MAX`] bytes long.
    pub state_dir: PathBuf,
    /// The module store, which survives restarts.
    pub root_dir: PathBuf,
    /// The socket to which the shim connects. Default: `control.sock` in `state_dir`.
    pub control_socket: Option<PathBuf>,
    /// Logging.
    pub log: Log,
    /// The Prometheus endpoint.
    pub metrics: Metrics,
    /// The Task API server.
    pub rpc: Rpc,
    /// wasmtime's engine and its pool.
    pub engine: Engine,
    /// The guest scheduler.
    pub scheduler: Scheduler,
    /// The module store and the compiler.
    pub modules: Modules,
    /// Compiling the modules of images before a pod is started from them.
    pub ahead: Ahead,
    /// Events to containerd.
    pub events: Events,
    /// Guests' stdio.
    pub stdio: Stdio,
    /// Guests' root file systems.
    pub files: Files,
    /// Guests' network.
    pub network: Network,
    /// HTTP components.
    pub http: Http,
    /// Host interfaces beyond WASI's own.
    pub interfaces: Interfaces,
    /// Which process runs a pod's guests.
    pub isolation: Isolation,
    /// Native containers in a pod.
    pub native: Native,
    /// The sandbox controller for containerd 2.x.
    pub sandboxer: Sandboxer,
    /// Limits of the things that one container takes from the node.
    pub tenant: Tenant,
    /// The behaviour near the memory limit of the daemon's control group.
    pub memory: Memory,
    /// Upgrades without a restart of pods.
    pub upgrade: Upgrade,
}

/// The configuration in force. A reload replaces it.
#[derive(Debug)]
pub struct Live(ArcSwap<Config>);

impl Live {
    /// Puts the first configuration in force.
    pub fn new(config: Config) -> Arc<Live> {
        Arc::new(Live(ArcSwap::from_pointee(config)))
    }

    /// The configuration in force now.
    pub fn now(&self) -> Arc<Config> {
        self.0.load_full()
    }

    /// Puts another in force.
    pub fn replace(&self, config: Config) {
        self.0.store(Arc::new(config));
    }
}

/// The configuration file with every key commented out, beside its documentation and its default.
/// `hearthd --print-default-config` prints it, and the package installs it.
pub const DEFAULT_FILE: &str = include_str!("../../../../../deploy/config.toml");

/// The longest path of a Unix socket, in bytes (`sun_path` of unix(7), without the final zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The longest `state_dir`, in bytes: the daemon's own sockets add up to 45 to it.
pub const STATE_DIR_BYTES_MAX: usize = 60;

impl Default for Config {
    fn default() -> Self {
        Config {
            state_dir: "/run/hearth".into(),
            root_dir: "/var/lib/hearth".into(),
            control_socket: None,
            log: Log::default(),
            metrics: Metrics::default(),
            rpc: Rpc::default(),
            engine: Engine::default(),
            scheduler: Scheduler::default(),
            modules: Modules::default(),
            ahead: Ahead::default(),
            events: Events::default(),
            stdio: Stdio::default(),
            files: Files::default(),
            network: Network::default(),
            http: Http::default(),
            interfaces: Interfaces::default(),
            isolation: Isolation::default(),
            native: Native::default(),
            tenant: Tenant::default(),
            memory: Memory::default(),
            upgrade: Upgrade::default(),
            sandboxer: Sandboxer::default(),
        }
    }
}

/// The reason why a configuration is refused: file, key, and a remedy, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// Refuses the value of a key.
fn refuse(key: &str, why: impl Display) -> Result<(), ConfigError> {
    Err(ConfigError(format!("{key}: {why}")))
}

/// Refuses the first of these keys whose value is 0.
fn at_least_one(values: &[(&str, u64)]) -> Result<(), ConfigError> {
    match values.iter().find(|(_, value)| *value == 0) {
        Some((key, _)) => refuse(key, "must be at least 1"),
        None => Ok(()),
    }
}

impl Config {
    /// Reads `path`. A missing file is an error: the user has named it.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key or a value of the wrong type.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|e| ConfigError(format!("cannot read {}: {e}", path.display())))?;
        Config::parse(&text).map_err(|e| ConfigError(format!("{}: {}", path.display(), e.0.trim_end())))
    }

    /// Parses TOML text.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|e| ConfigError(explain::explain(text, &e)))
    }

    /// The socket to which the shim connects.
    pub fn control_socket(&self) -> PathBuf {
        self.control_socket.clone().unwrap_or_else(|| self.state_dir.join("control.sock"))
    }

    /// Checks the rules that the types cannot express.
    ///
    /// # Errors
    /// Names a key that is wrong, and its valid values.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_paths()?;
        self.metrics.check()?;
        self.rpc.check()?;
        self.engine.check()?;
        self.scheduler.check()?;
        self.modules.check()?;
        self.ahead.check()?;
        self.events.check()?;
        self.stdio.check()?;
        self.files.check()?;
        self.network.check()?;
        self.http.check()?;
        self.interfaces.check()?;
        self.isolation.check()?;
        self.native.check()?;
        self.tenant.check()?;
        self.memory.check()?;
        self.upgrade.check()?;
        self.sandboxer.check(&self.state_dir, self.control_socket())
    }

    fn check_paths(&self) -> Result<(), ConfigError> {
        for (key, path) in [("state_dir", &self.state_dir), ("root_dir", &self.root_dir)] {
            if !path.is_absolute() {
                return refuse(key, format!("{} is not an absolute path", path.display()));
            }
        }
        let length = self.state_dir.as_os_str().len();
        if length > STATE_DIR_BYTES_MAX {
            return refuse(
                "state_dir",
                format!("is {length} bytes long; sockets below it need it to be at most {STATE_DIR_BYTES_MAX}"),
            );
        }
        if self.control_socket().as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return refuse(
                "control_socket",
                format!("a Unix socket's path holds at most {SOCKET_PATH_BYTES_MAX} bytes"),
            );
        }
        Ok(())
    }
}
