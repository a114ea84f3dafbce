//! `[isolation]`: which process runs a pod's guests; processes made in advance.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one, refuse};
use crate::isolation::Level;

/// Which process runs a pod's guests. A RuntimeClass's handler and a pod's annotation can ask for more than is said here,
/// and never for less.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Isolation {
    /// The level of every pod: `node` (all in this process) or `pod` (a process for each pod).
    pub level: Level,
    /// Kubernetes namespaces whose pods get a process each.
    pub pod_namespaces: Vec<String>,
    /// Processes that wait for a pod, made in advance. 0: the first pod of level `pod` waits for its process.
    pub spares: usize,
    /// Pods with a process of their own; one more is refused.
    pub cells_max: usize,
    /// Guests of one pod that have an instance of the pool made for it in advance; others take a little longer to start.
    pub pool_slots: u32,
}

/// The most spare processes: each holds some pages and a process id.
const SPARES_MAX: usize = 1_000;

impl Default for Isolation {
    fn default() -> Self {
        Isolation { level: Level::Node, pod_namespaces: Vec::new(), spares: 0, cells_max: 1_000, pool_slots: 64 }
    }
}

impl Isolation {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.spares > SPARES_MAX {
            return refuse("isolation.spares", format!("must be at most {SPARES_MAX}"));
        }
        at_least_one(&[
            ("isolation.cells_max", self.cells_max as u64),
            ("isolation.pool_slots", u64::from(self.pool_slots)),
        ])
    }
}
