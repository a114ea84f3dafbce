//! What all processes of a task share.

use std::path::PathBuf;
use std::sync::Arc;

use crate::bundle::Network;
use crate::metrics::Metrics;
use crate::task::execs::Execs;
use crate::task::files::Files;
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
    pub network: Network,
    /// The root file system.
    pub files: Arc<Files>,
    /// Whether it, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// What all its guests together may hold, in bytes.
    pub memory_limit: u64,
    /// What their memories and tables do hold.
    pub memory: Arc<MemoryUse>,
    /// The processes beside the init.
    pub execs: Execs,
    /// The daemon's metrics.
    pub metrics: Arc<Metrics>,
}
