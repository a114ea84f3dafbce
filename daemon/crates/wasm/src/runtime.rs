//! The engines, the scheduler and the limits that all guests of the daemon share.

use std::sync::Arc;

use hearth_observe::metrics::Metrics;
use hearth_observe::starts::Recent;

use crate::engine::Engines;
use crate::resolver::Resolvers;
use crate::scheduler::Scheduler;
use crate::slots::Slots;

/// Everything that an instance needs to be made and to run.
pub struct Runtime {
    /// The engines.
    pub engines: Arc<Engines>,
    /// The scheduler.
    pub scheduler: Arc<Scheduler>,
    /// Slots for guests.
    pub slots: Arc<Slots>,
    /// Look-ups of names.
    pub resolvers: Arc<Resolvers>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The last starts and ends.
    pub recent: Arc<Recent>,
}
