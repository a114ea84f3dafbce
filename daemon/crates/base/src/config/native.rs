//! `[native]`: native containers in a pod: the shim that runs them, and its time-out.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one};

/// Native containers in a pod: init containers and sidecars that are not Wasm.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Native {
    /// containerd's shim that runs them; a name without a slash is looked up in `PATH`.
    pub shim: PathBuf,
    /// How long its `start` and `delete` may take, in milliseconds.
    pub shim_timeout_ms: u64,
}

impl Default for Native {
    fn default() -> Self {
        Native { shim: "containerd-shim-runc-v2".into(), shim_timeout_ms: 10_000 }
    }
}

impl Native {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[("native.shim_timeout_ms", self.shim_timeout_ms)])
    }
}
