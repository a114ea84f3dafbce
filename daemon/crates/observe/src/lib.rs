//! The daemon as an operator sees it: metrics, the log, the phases of each start, and their traces.
//!
//! ```text
//!   daemon, guests ─┬─ metrics.ROOM.FIELD ─▶ Metrics ──────────────▶ /metrics
//!                   ├─ tracing events ─▶ Logging ─▶ stderr; the last lines ─▶ hearthctl logs
//!                   └─ phases of a start ─▶ About ─▶ Recent ─┬────▶ status page, hearthctl trace and traps
//!                                                            ├────▶ histograms of container starts
//!                                                            └────▶ spans ─▶ OpenTelemetry collector
//! ```
//!
//! Promises: nothing here makes a start, a guest or an RPC wait; every queue and list is bounded, and what does not
//! fit is counted; no guest's text reaches an output uncut or unescaped.
//!
//! * `metrics/`: each metric with name, help and labels; series of single tasks; metrics of the process.
//! * `logging/`: the log's level, format and rates; lines left out of the log; the last lines in memory.
//! * `starts/`: the phases of a start as they are measured; the last starts, traps and out-of-memory ends.
//! * `traces/`: starts as OpenTelemetry spans, sent to a collector; the `OTEL_*` variables.
#![forbid(unsafe_code)]

pub mod logging;
pub mod metrics;
pub mod starts;
pub mod traces;

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_every_file() {
        hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
    }
}
