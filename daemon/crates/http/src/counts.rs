//! The metrics of one service's requests: for the daemon, and for its pod where `metrics.pods` asks for it.

use std::sync::Arc;
use std::time::Duration;

use hearth_observe::metrics::{CutReason, Handshake, HttpPod, Metrics};

/// Counts the requests of one service.
pub struct Counts {
    metrics: Arc<Metrics>,
    pod: Option<HttpPod>,
}

impl Counts {
    /// In the daemon's metrics, and in those of `pod` if there is one.
    pub fn new(metrics: Arc<Metrics>, pod: Option<HttpPod>) -> Counts {
        Counts { metrics, pod }
    }

    /// Counts a response whose head goes out, so long after the request's head.
    pub fn answered(&self, status: u16, took: Duration) {
        self.response(status);
        self.metrics.http.first_byte_seconds.observe(took.as_secs_f64());
        if let Some(pod) = &self.pod {
            pod.first_byte_seconds.observe(took.as_secs_f64());
        }
    }

    /// Counts a request that has come to its response's end, so long after its head.
    pub fn ended(&self, took: Duration) {
        self.metrics.http.request_seconds.observe(took.as_secs_f64());
        if let Some(pod) = &self.pod {
            pod.request_seconds.observe(took.as_secs_f64());
        }
    }

    /// The metrics of its pod, if there are any.
    pub fn pod(&self) -> Option<&HttpPod> {
        self.pod.as_ref()
    }

    /// Counts a response by its status alone. hyper itself answers a head that is too large or that is no HTTP; such a
    /// request has no times.
    pub fn response(&self, status: u16) {
        self.metrics.http.response(status);
        if let Some(pod) = &self.pod {
            pod.response(status);
        }
    }

    /// Counts a response of which the client did not get all.
    pub fn cut(&self, reason: CutReason) {
        self.metrics.http.cut(reason);
        if let Some(pod) = &self.pod {
            pod.cut.inc();
        }
    }

    /// Counts a TLS handshake with a client.
    pub fn handshake(&self, end: Handshake) {
        self.metrics.http.handshake(end);
    }

    /// Counts a renewal of a certificate.
    pub fn renewed(&self, is_usable: bool) {
        self.metrics.http.renewal(is_usable);
    }

    /// Counts the time that an instance took to be made.
    pub fn instantiated(&self, took: Duration) {
        self.metrics.http.instantiate_seconds.observe(took.as_secs_f64());
        if let Some(pod) = &self.pod {
            pod.instantiate_seconds.observe(took.as_secs_f64());
        }
    }

    /// Counts a request that was refused with 503.
    pub fn refused(&self) {
        self.metrics.http.refused.inc();
        if let Some(pod) = &self.pod {
            pod.refused.inc();
        }
    }

    /// Counts a guest's trap.
    pub fn trapped(&self) {
        self.metrics.http.traps.inc();
        if let Some(pod) = &self.pod {
            pod.traps.inc();
        }
    }

    /// Counts a request that has an instance, until it is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.metrics.http.in_flight.inc();
        if let Some(pod) = &self.pod {
            pod.in_flight.inc();
        }
        InFlight(self.clone())
    }

    /// Counts a request that waits to be admitted, until it is dropped.
    pub fn queue(self: &Arc<Self>) -> Waits {
        self.metrics.http.queued.inc();
        if let Some(pod) = &self.pod {
            pod.queued.inc();
        }
        Waits(self.clone())
    }
}

/// A request that has an instance.
pub struct InFlight(Arc<Counts>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.metrics.http.in_flight.dec();
        if let Some(pod) = &self.0.pod {
            pod.in_flight.dec();
        }
    }
}

/// A request that waits.
pub struct Waits(Arc<Counts>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.metrics.http.queued.dec();
        if let Some(pod) = &self.0.pod {
            pod.queued.dec();
        }
    }
}
