//! Metrics of HTTP by pod and container. They exist only with `metrics.pods`, and only while the container does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::declare::Declare;
use super::http::{CLASSES, class};

/// Labels of a container.
const LABELS: [&str; 3] = ["namespace", "pod", "container"];

/// Buckets of a container's request times, in seconds: fewer than elsewhere, as there are many containers.
const BUCKETS: &[f64] = &[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// The parts of a request's time, as label values: it waits for admission; it waits for an instance, which may have to be
/// made; the guest computes the response's head; the response's body goes to the client.
pub const REQUEST_PHASES: [&str; 4] = ["queue", "instance", "head", "body"];

/// The families of all containers.
pub(super) struct HttpPods {
    requests: IntCounterVec,
    first_byte: HistogramVec,
    request: HistogramVec,
    instantiate: HistogramVec,
    phases: HistogramVec,
    in_flight: IntGaugeVec,
    queued: IntGaugeVec,
    refused: IntCounterVec,
    traps: IntCounterVec,
    cut: IntCounterVec,
    /// Holders by labels: a container and its successor may exist at once, with the same names.
    holders: Mutex<HashMap<[String; 3], usize>>,
}

impl HttpPods {
    pub fn new(registry: &Registry) -> Arc<HttpPods> {
        let declare = Declare(registry);
        let histogram = |name, help| declare.histograms(name, help, &LABELS, BUCKETS);
        Arc::new(HttpPods {
            requests: declare.counters(
                "hearth_http_pod_requests_total",
                "HTTP requests by pod and the class of the answer's status code.",
                &[&LABELS[..], &["code"]].concat(),
            ),
            first_byte: histogram(
                "hearth_http_pod_first_byte_seconds",
                "Time from an HTTP request's head to its response's head, in seconds, by pod.",
            ),
            request: histogram(
                "hearth_http_pod_request_seconds",
                "Time from an HTTP request's head to its response's end, in seconds, by pod.",
            ),
            instantiate: histogram(
                "hearth_http_pod_instantiate_seconds",
                "Time to make the instance for an HTTP request, in seconds, by pod.",
            ),
            phases: declare.histograms(
                "hearth_http_pod_phase_seconds",
                "Parts of an HTTP request's time, in seconds, by pod: queue, instance, head, body.",
                &[&LABELS[..], &["phase"]].concat(),
                BUCKETS,
            ),
            in_flight: declare.gauges(
                "hearth_http_pod_requests_in_flight",
                "HTTP requests that have an instance now, by pod.",
                &LABELS,
            ),
            queued: declare.gauges(
                "hearth_http_pod_requests_queued",
                "HTTP requests that wait for their turn, by pod.",
                &LABELS,
            ),
            refused: declare.counters(
                "hearth_http_pod_requests_refused_total",
                "HTTP requests answered with 503 for a limit, by pod.",
                &LABELS,
            ),
            traps: declare.counters(
                "hearth_http_pod_traps_total",
                "HTTP requests whose guest trapped, by pod.",
                &LABELS,
            ),
            cut: declare.counters(
                "hearth_http_pod_responses_cut_total",
                "HTTP responses of which the client did not get all, by pod.",
                &LABELS,
            ),
            holders: Mutex::default(),
        })
    }

    pub fn get(pods: &Arc<HttpPods>, labels: [&str; 3]) -> HttpPod {
        *pods.holders.lock().entry(labels.map(str::to_string)).or_default() += 1;
        let phase = |phase| pods.phases.with_label_values(&[labels[0], labels[1], labels[2], phase]);
        let code = |class| pods.requests.with_label_values(&[labels[0], labels[1], labels[2], class]);
        HttpPod {
            requests: CLASSES.map(code),
            first_byte_seconds: pods.first_byte.with_label_values(&labels),
            request_seconds: pods.request.with_label_values(&labels),
            instantiate_seconds: pods.instantiate.with_label_values(&labels),
            phases: REQUEST_PHASES.map(phase),
            in_flight: pods.in_flight.with_label_values(&labels),
            queued: pods.queued.with_label_values(&labels),
            refused: pods.refused.with_label_values(&labels),
            traps: pods.traps.with_label_values(&labels),
            cut: pods.cut.with_label_values(&labels),
            labels: labels.map(str::to_string),
            pods: pods.clone(),
        }
    }

    /// One holder fewer; the last one takes the series with it.
    fn release(&self, labels: &[String; 3]) {
        let mut holders = self.holders.lock();
        let Some(count) = holders.get_mut(labels) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        holders.remove(labels);
        let labels = [labels[0].as_str(), labels[1].as_str(), labels[2].as_str()];
        for class in CLASSES {
            let _ = self.requests.remove_label_values(&[labels[0], labels[1], labels[2], class]);
        }
        for phase in REQUEST_PHASES {
            let _ = self.phases.remove_label_values(&[labels[0], labels[1], labels[2], phase]);
        }
        for histogram in [&self.first_byte, &self.request, &self.instantiate] {
            let _ = histogram.remove_label_values(&labels);
        }
        for gauge in [&self.in_flight, &self.queued] {
            let _ = gauge.remove_label_values(&labels);
        }
        for counter in [&self.refused, &self.traps, &self.cut] {
            let _ = counter.remove_label_values(&labels);
        }
    }
}

/// The metrics of one container that serves HTTP, as [`HttpMetrics`](super::http::HttpMetrics) has them for all.
pub struct HttpPod {
    requests: [IntCounter; CLASSES.len()],
    /// Time from a request's head to its response's head, in seconds.
    pub first_byte_seconds: Histogram,
    /// Time from a request's head to its response's end, in seconds.
    pub request_seconds: Histogram,
    /// Time to make a request's instance, in seconds.
    pub instantiate_seconds: Histogram,
    phases: [Histogram; REQUEST_PHASES.len()],
    /// Requests that have an instance.
    pub in_flight: IntGauge,
    /// Requests that wait for admission.
    pub queued: IntGauge,
    /// Requests refused for a limit.
    pub refused: IntCounter,
    /// Requests whose guest trapped.
    pub traps: IntCounter,
    /// Responses of which the client did not get all.
    pub cut: IntCounter,
    labels: [String; 3],
    pods: Arc<HttpPods>,
}

impl HttpPod {
    /// Counts a response.
    pub fn response(&self, status: u16) {
        self.requests[class(status)].inc();
    }

    /// Observes the parts of a request's time, in the order of [`REQUEST_PHASES`]; none for a part that it did not come to.
    pub fn phases(&self, took: [Option<Duration>; REQUEST_PHASES.len()]) {
        for (phase, took) in self.phases.iter().zip(took) {
            took.into_iter().for_each(|took| phase.observe(took.as_secs_f64()));
        }
    }
}

impl Drop for HttpPod {
    fn drop(&mut self) {
        self.pods.release(&self.labels);
    }
}
