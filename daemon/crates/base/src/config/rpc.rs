//! `[rpc]`: the Task API server: threads, the number of tasks and namespaces, the size of a spec, the time of a
//! call to containerd.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one};

/// The Task API server.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rpc {
    /// Threads that serve requests.
    pub threads: usize,
    /// Threads for mounts and other file work that would block a request thread.
    pub blocking_threads_max: usize,
    /// Tasks alive at once, over all containerd instances and namespaces.
    pub tasks_max: usize,
    /// Namespaces, over all containerd instances, that may have a task socket.
    pub namespaces_max: usize,
    /// The largest `config.json`, in bytes.
    pub spec_bytes_max: u64,
    /// How long a call of the daemon to containerd may take, in milliseconds.
    pub containerd_timeout_ms: u64,
}

impl Default for Rpc {
    fn default() -> Self {
        Rpc {
            threads: 2,
            blocking_threads_max: 64,
            tasks_max: 20_000,
            namespaces_max: 1_024,
            spec_bytes_max: 4 << 20,
            containerd_timeout_ms: 5_000,
        }
    }
}

impl Rpc {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("rpc.threads", self.threads as u64),
            ("rpc.blocking_threads_max", self.blocking_threads_max as u64),
            ("rpc.tasks_max", self.tasks_max as u64),
            ("rpc.namespaces_max", self.namespaces_max as u64),
            ("rpc.spec_bytes_max", self.spec_bytes_max),
            ("rpc.containerd_timeout_ms", self.containerd_timeout_ms),
        ])
    }
}
