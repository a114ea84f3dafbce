//! `[network]`: look-ups of names, and network namespaces made in advance.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one};

/// Guests' network.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Look-ups of names at the same time, over all guests; more wait.
    pub lookups_max: usize,
    /// How long one look-up may take, in milliseconds, waiting included, whatever the guest's resolv.conf says.
    pub lookup_timeout_ms: u64,
    /// Network namespaces made in advance, each a small process, for tasks that ask for a new one (`ctr run`
    /// without `--net-host`; pods do not). None is made before the first such task.
    pub holders_warm: usize,
}

impl Default for Network {
    fn default() -> Self {
        Network { lookups_max: 256, lookup_timeout_ms: 60_000, holders_warm: 2 }
    }
}

impl Network {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("network.lookups_max", self.lookups_max as u64),
            ("network.lookup_timeout_ms", self.lookup_timeout_ms),
        ])
    }
}
