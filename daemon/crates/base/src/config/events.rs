//! `[events]`: the queue of events to a containerd, and the retries of their delivery.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one, refuse};

/// Events of a task's whole life: Create, Start, OOM, Exit, Delete. A queue holds at least this number.
pub const EVENTS_PER_TASK: usize = 5;

/// Events to containerd.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// Events waiting for one containerd. A task is refused while its events would not fit, so that no event of a
    /// live task is ever dropped.
    pub queue_max: usize,
    /// The first pause after a failed delivery, in milliseconds; it doubles.
    pub retry_ms: u64,
    /// The longest pause, in milliseconds.
    pub retry_max_ms: u64,
    /// How long one delivery may take, in milliseconds.
    pub timeout_ms: u64,
}

impl Default for Events {
    fn default() -> Self {
        Events { queue_max: 131_072, retry_ms: 10, retry_max_ms: 1_000, timeout_ms: 5_000 }
    }
}

impl Events {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[("events.retry_ms", self.retry_ms), ("events.timeout_ms", self.timeout_ms)])?;
        if self.queue_max < EVENTS_PER_TASK {
            return refuse("events.queue_max", format!("must be at least {EVENTS_PER_TASK}, the events of one task"));
        }
        if self.retry_max_ms < self.retry_ms {
            return refuse("events.retry_max_ms", format!("must be at least events.retry_ms ({})", self.retry_ms));
        }
        Ok(())
    }
}
