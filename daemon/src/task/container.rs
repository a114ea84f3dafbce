//! What all processes of a task share.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::bundle::Cpu;
use crate::http::requests::Requests;
use crate::metrics::Metrics;
use crate::os::namespaces::Shared;
use crate::task::execs::Execs;
use crate::task::files::Files;
use crate::task::sandbox::Joined;
use crate::wasm::wasi::MemoryUse;

/// A container: everything of a task that is not a process.
pub struct Container {
    /// Its id, the task's.
    pub id: Arc<str>,
    /// containerd's namespace.
    pub namespace: Arc<str>,
    /// The bundle.
    pub bundle: PathBuf,
    /// The network it is in; of a pod's container, its sandbox's.
    pub network: Joined,
    /// Its host name, for native containers beside it.
    pub hostname: String,
    /// The namespaces it shares with native containers, if it is a sandbox; made for the first of them.
    pub shared: OnceLock<Shared>,
    /// The root file system.
    pub files: Arc<Files>,
    /// Whether it, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// What the memories and tables of all its guests together hold, and may hold.
    pub memory: Arc<MemoryUse>,
    /// The most memory they may ever be given, in bytes: the engine's.
    pub memory_limit_max: u64,
    /// What the spec says of CPU time, with all updates. It holds for each process by itself.
    pub cpu: Mutex<Cpu>,
    /// The processes beside the init.
    pub execs: Execs,
    /// The requests it serves; of an HTTP component only.
    pub requests: Option<Arc<Requests>>,
    /// The daemon's metrics.
    pub metrics: Arc<Metrics>,
}
