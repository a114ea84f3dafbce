//! Metrics of HTTP: requests to guests, and requests that guests send.

use std::sync::Arc;

use prometheus::{Histogram, IntCounter, IntGauge, Registry};

use super::declare::{Declare, PHASE_BUCKETS};
use super::http_pods::{HttpPod, HttpPods};

/// Classes of HTTP status codes, as labels.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The index in [`CLASSES`] of a status code.
pub(super) fn class(status: u16) -> usize {
    usize::from(status / 100).clamp(1, CLASSES.len()) - 1
}

/// Counted where requests to guests are admitted, served and answered.
pub struct HttpMetrics {
    requests: [IntCounter; CLASSES.len()],
    /// Time from a request's head to its response's head, in seconds.
    pub first_byte_seconds: Histogram,
    /// Time from a request's head to its response's end, in seconds.
    pub request_seconds: Histogram,
    /// Time to make a request's instance, in seconds.
    pub instantiate_seconds: Histogram,
    /// Requests that have an instance.
    pub in_flight: IntGauge,
    /// Requests that wait for admission.
    pub queued: IntGauge,
    /// Requests refused for a limit.
    pub refused: IntCounter,
    /// Requests whose guest trapped.
    pub traps: IntCounter,
    /// Requests that guests send.
    pub outgoing: OutgoingMetrics,
    pods: Arc<HttpPods>,
}

impl HttpMetrics {
    pub(super) fn new(registry: &Registry) -> HttpMetrics {
        let declare = Declare(registry);
        let requests = declare.counters(
            "hearth_http_requests_total",
            "HTTP requests by the class of the answer's status code.",
            &["code"],
        );
        HttpMetrics {
            requests: CLASSES.map(|class| requests.with_label_values(&[class])),
            first_byte_seconds: declare.histogram(
                "hearth_http_first_byte_seconds",
                "Time from an HTTP request's head to its response's head, in seconds.",
                PHASE_BUCKETS,
            ),
            request_seconds: declare.histogram(
                "hearth_http_request_seconds",
                "Time from an HTTP request's head to its response's end, in seconds.",
                PHASE_BUCKETS,
            ),
            instantiate_seconds: declare.histogram(
                "hearth_http_instantiate_seconds",
                "Time to make the instance for an HTTP request, in seconds.",
                PHASE_BUCKETS,
            ),
            in_flight: declare.gauge("hearth_http_requests_in_flight", "HTTP requests that have an instance now."),
            queued: declare.gauge("hearth_http_requests_queued", "HTTP requests that wait for their turn."),
            refused: declare.counter(
                "hearth_http_requests_refused_total",
                "HTTP requests answered with 503 for a limit of the node's.",
            ),
            traps: declare.counter("hearth_http_traps_total", "HTTP requests whose guest trapped."),
            outgoing: OutgoingMetrics::new(registry),
            pods: HttpPods::new(registry),
        }
    }

    /// Counts a response.
    pub fn response(&self, status: u16) {
        self.requests[class(status)].inc();
    }

    /// The metrics of a pod's container that serves HTTP: its namespace, its name, the container's. Its series are
    /// removed when the last holder drops them.
    pub fn pod(&self, labels: [&str; 3]) -> HttpPod {
        HttpPods::get(&self.pods, labels)
    }
}

/// Counted where guests send requests.
pub struct OutgoingMetrics {
    requests: [IntCounter; CLASSES.len()],
    /// Requests that got no response.
    pub failed: IntCounter,
    /// Open connections, idle ones included.
    pub connections: IntGauge,
}

impl OutgoingMetrics {
    fn new(registry: &Registry) -> OutgoingMetrics {
        let declare = Declare(registry);
        let requests = declare.counters(
            "hearth_http_outgoing_requests_total",
            "HTTP requests that guests sent, by the class of the answer's status code, or failed.",
            &["code"],
        );
        OutgoingMetrics {
            requests: CLASSES.map(|class| requests.with_label_values(&[class])),
            failed: requests.with_label_values(&["failed"]),
            connections: declare.gauge(
                "hearth_http_outgoing_connections",
                "Connections open for HTTP requests of guests, idle ones included.",
            ),
        }
    }

    /// Counts a response.
    pub fn response(&self, status: u16) {
        self.requests[class(status)].inc();
    }
}
