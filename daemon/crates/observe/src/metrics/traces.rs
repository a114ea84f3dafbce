//! Metrics of the traces of starts: spans that a collector took, starts whose trace is lost.

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::declare::Declare;

/// Counted by [`crate::traces`].
pub struct TraceMetrics {
    /// Spans of starts, by whether the OpenTelemetry collector took them.
    pub spans: IntCounterVec,
    /// Starts whose trace is lost because the queue to the collector was full.
    pub starts_dropped: IntCounter,
}

impl TraceMetrics {
    pub(super) fn new(registry: &Registry) -> TraceMetrics {
        let declare = Declare(registry);
        TraceMetrics {
            spans: declare.counters_of(
                "hearth_trace_spans_total",
                "Spans of starts by what became of them at the OpenTelemetry collector: sent, failed.",
                "result",
                &["sent", "failed"],
            ),
            starts_dropped: declare.counter(
                "hearth_trace_starts_dropped_total",
                "Starts whose trace is lost, for want of room in the queue to the OpenTelemetry collector (OTEL_BSP_MAX_QUEUE_SIZE).",
            ),
        }
    }
}
