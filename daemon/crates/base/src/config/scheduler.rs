//! `[scheduler]`: worker threads, the length of a guest's turn, the time after which a worker counts as blocked.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one, refuse};

/// The guest scheduler.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scheduler {
    /// Threads that run guests; 0: one per core.
    pub workers: usize,
    /// Threads that run guests, counting those that are blocked in a system call.
    pub workers_max: usize,
    /// How often a guest that computes checks whether its turn is over, in milliseconds.
    pub tick_ms: u64,
    /// How long a guest may compute while no other guest waits, in milliseconds.
    pub slice_ms: u64,
    /// The time in one system call after which a worker counts as blocked, in milliseconds.
    pub blocked_after_ms: u64,
}

impl Default for Scheduler {
    fn default() -> Self {
        Scheduler { workers: 0, workers_max: 512, tick_ms: 1, slice_ms: 10, blocked_after_ms: 20 }
    }
}

impl Scheduler {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("scheduler.tick_ms", self.tick_ms),
            ("scheduler.slice_ms", self.slice_ms),
            ("scheduler.workers_max", self.workers_max as u64),
        ])?;
        if self.blocked_after_ms <= self.slice_ms {
            return refuse(
                "scheduler.blocked_after_ms",
                format!("must be over scheduler.slice_ms ({})", self.slice_ms),
            );
        }
        Ok(())
    }
}
