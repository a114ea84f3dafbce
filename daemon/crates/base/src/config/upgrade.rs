//! `[upgrade]`: how long an old daemon serves its tasks beside a new one, how long a stop waits for tasks to end, how many
//! daemons may run.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one};

/// Upgrades without a restart of pods: the new hearthd takes new pods, the old one serves the pods it has.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upgrade {
    /// How long an old hearthd may serve its tasks beside a new one, in seconds; then it ends them. 0: until
    /// the last of them has ended.
    pub drain_seconds_max: u64,
    /// How long a stop lets tasks end by themselves, in seconds, before it ends them. It takes no new tasks
    /// meanwhile, and another SIGTERM ends all tasks at once. 0: it ends them at once.
    pub stop_drain_seconds: u64,
    /// Old hearthds and the new one together; one more does not start.
    pub generations_max: usize,
}

impl Default for Upgrade {
    fn default() -> Self {
        Upgrade { drain_seconds_max: 0, stop_drain_seconds: 0, generations_max: 16 }
    }
}

impl Upgrade {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[("upgrade.generations_max", self.generations_max as u64)])
    }
}
