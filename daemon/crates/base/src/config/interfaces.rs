//! `[interfaces]`: key-value stores, databases and messages of guests.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one};

/// Host interfaces beyond WASI's own.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Interfaces {
    /// How long a connection to a server may take, its TLS and its login included, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long one call may take, in milliseconds, waiting included.
    pub call_timeout_ms: u64,
    /// The largest answer to one call, in bytes: rows, keys and values together. It counts as memory of the container
    /// until the guest has it.
    pub answer_bytes_max: u64,
}

impl Default for Interfaces {
    fn default() -> Self {
        Interfaces { connect_timeout_ms: 10_000, call_timeout_ms: 30_000, answer_bytes_max: 16 << 20 }
    }
}

impl Interfaces {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("interfaces.connect_timeout_ms", self.connect_timeout_ms),
            ("interfaces.call_timeout_ms", self.call_timeout_ms),
            ("interfaces.answer_bytes_max", self.answer_bytes_max),
        ])
    }
}
