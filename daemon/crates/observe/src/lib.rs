//! What an operator sees of the daemon: metrics, the log, the phases of each start, and their traces.
#![forbid(unsafe_code)]

pub mod logging;
pub mod metrics;
pub mod starts;
pub mod traces;
