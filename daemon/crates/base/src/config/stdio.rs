//! `[stdio]`: guests' standard streams: the size of a call, the time of a log program, output that is not read yet.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one};

/// Guests' stdio.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stdio {
    /// The most that a guest may write or read in one call, in bytes.
    pub chunk_bytes: usize,
    /// How long a `binary://` log program may take to say that it is ready, in milliseconds.
    pub log_binary_timeout_ms: u64,
    /// How long a log program may go on after the end of its task, in milliseconds. Then it gets a SIGTERM, and
    /// after the same time again a SIGKILL.
    pub log_binary_drain_ms: u64,
    /// How long unread output of a task waits for its reader after the task's end, in milliseconds. Only a slow or
    /// absent reader makes it wait at all.
    pub linger_ms: u64,
    /// How long the content of a task's FIFO is kept after the task's end for a reader that has not opened it yet
    /// (a client is late, or containerd restarts), in milliseconds.
    pub unread_ms: u64,
}

impl Default for Stdio {
    fn default() -> Self {
        Stdio {
            chunk_bytes: 64 << 10,
            log_binary_timeout_ms: 10_000,
            log_binary_drain_ms: 10_000,
            linger_ms: 2_000,
            unread_ms: 60_000,
        }
    }
}

impl Stdio {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("stdio.chunk_bytes", self.chunk_bytes as u64),
            ("stdio.log_binary_timeout_ms", self.log_binary_timeout_ms),
            ("stdio.log_binary_drain_ms", self.log_binary_drain_ms),
        ])
    }
}
