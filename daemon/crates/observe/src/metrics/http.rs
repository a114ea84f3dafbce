//! Metrics of HTTP: requests to guests, and requests that guests send.

use std::sync::Arc;

use prometheus::{Histogram, IntCounter, IntGauge, Registry};

use super::declare::{Declare, PHASE_BUCKETS};
use super::http_pods::{HttpPod, HttpPods};

/// Classes of HTTP status codes, as labels.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Why a client did not get a whole response, or no response at all for a reason that gives it no status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutReason {
    /// The guest trapped or exited with an error.
    Trap,
    /// The guest, or another request of its instance, took too long.
    TimeOut,
    /// The guest dropped its body unfinished.
    Dropped,
    /// The guest's body was shorter than its Content-Length.
    Length,
    /// The container ended.
    Killed,
    /// The client went away, or moved nothing for too long.
    Client,
    /// The client took the response too slowly.
    SlowClient,
}

/// The label values of [`CutReason`], in its order.
const CUT_REASONS: [&str; 7] = ["trap", "time_out", "dropped", "length", "killed", "client", "slow_client"];

/// How a TLS handshake with a client ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// The client speaks TLS from then on.
    Done,
    /// The client or the daemon refused, or the client went away.
    Failed,
    /// It took too long.
    TooSlow,
}

/// The label values of [`Handshake`], in its order.
const HANDSHAKES: [&str; 3] = ["done", "failed", "too_slow"];

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
    cut: [IntCounter; CUT_REASONS.len()],
    handshakes: [IntCounter; HANDSHAKES.len()],
    renewals: [IntCounter; 2],
    /// Requests that guests send.
    pub outgoing: OutgoingMetrics,
    pods: Arc<HttpPods>,
}

impl HttpMetrics {
    pub(super) fn new(registry: &Registry) -> HttpMetrics {
        let declare = Declare(registry);
        HttpMetrics {
            requests: declare.each_counter(
                "hearth_http_requests_total",
                "HTTP requests by the class of the answer's status code.",
                "code",
                CLASSES,
            ),
            cut: declare.each_counter(
                "hearth_http_responses_cut_total",
                "HTTP responses of which the client did not get all, by reason: trap, time_out, dropped (by the guest), length (shorter than its Content-Length), killed, client (went away), slow_client.",
                "reason",
                CUT_REASONS,
            ),
            handshakes: declare.each_counter(
                "hearth_http_tls_handshakes_total",
                "TLS handshakes with clients of HTTP components, by result: done, failed, too_slow.",
                "result",
                HANDSHAKES,
            ),
            renewals: declare.each_counter(
                "hearth_http_tls_renewals_total",
                "Renewed certificates of HTTP components, by result: used, unusable (the one before stays).",
                "result",
                ["used", "unusable"],
            ),
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

    /// Counts a response of which the client did not get all.
    pub fn cut(&self, reason: CutReason) {
        self.cut[reason as usize].inc();
    }

    /// Counts a TLS handshake with a client.
    pub fn handshake(&self, end: Handshake) {
        self.handshakes[end as usize].inc();
    }

    /// Counts a renewal of a certificate.
    pub fn renewal(&self, is_usable: bool) {
        self.renewals[usize::from(!is_usable)].inc();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_of_a_cut_has_its_own_series() {
        let registry = Registry::new();
        let metrics = HttpMetrics::new(&registry);
        metrics.cut(CutReason::SlowClient);
        for family in registry.gather().iter().filter(|family| family.name() == "hearth_http_responses_cut_total") {
            assert_eq!(family.get_metric().len(), CUT_REASONS.len());
            for metric in family.get_metric() {
                let expected = if metric.get_label()[0].value() == "slow_client" { 1.0 } else { 0.0 };
                assert_eq!(metric.get_counter().get_value(), expected, "{metric:?}");
            }
        }
        assert_eq!(metrics.cut[CutReason::SlowClient as usize].get(), 1);
    }
}
