//! Metrics of events: queued for containerd, taken by it, refused.

use prometheus::{IntCounter, IntGauge, Registry};

use super::declare::Declare;

/// Counted by the queue of events to containerd.
pub struct EventMetrics {
    /// Events waiting for containerd.
    pub queued: IntGauge,
    /// Events containerd has taken.
    pub sent: IntCounter,
    /// Deliveries that failed and were tried again.
    pub retried: IntCounter,
    /// Events containerd will never take.
    pub refused: IntCounter,
}

impl EventMetrics {
    pub(super) fn new(registry: &Registry) -> EventMetrics {
        let declare = Declare(registry);
        EventMetrics {
            queued: declare.gauge("hearth_events_queued", "Events waiting for containerd."),
            sent: declare.counter("hearth_events_sent_total", "Events that containerd has taken."),
            retried: declare
                .counter("hearth_events_retried_total", "Deliveries of events that failed and were tried again."),
            refused: declare.counter(
                "hearth_events_refused_total",
                "Events that containerd will never take (it says why in the log); not tried again.",
            ),
        }
    }
}
