//! `[files]`: guests' root file systems: the number of volumes, the size of a tmpfs.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one};

/// Guests' root file systems.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// Bind mounts and tmpfs of one task.
    pub volumes_max: usize,
    /// The size of a tmpfs whose options name none, in bytes: the kernel's own default is half of the node's memory.
    pub tmpfs_bytes_default: u64,
}

impl Default for Files {
    fn default() -> Self {
        Files { volumes_max: 256, tmpfs_bytes_default: 64 << 20 }
    }
}

impl Files {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("files.volumes_max", self.volumes_max as u64),
            ("files.tmpfs_bytes_default", self.tmpfs_bytes_default),
        ])
    }
}
