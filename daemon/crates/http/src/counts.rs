//! What is counted of one service's requests: for the daemon, and for its pod where that is asked for.

use std::sync::Arc;
use std::time::Duration;

use hearth_observe::metrics::{HttpPod, Metrics};

/// What is counted of one service.
pub struct Counts {
    metrics: Arc<Metrics>,
    pod: Option<HttpPod>,
}

impl Counts {
    /// In the daemon's metrics, and in `pod`.
    pub fn new(metrics: Arc<Metrics>, pod: Option<HttpPod>) -> Counts {
        Counts { metrics, pod }
    }

    /// A response's head is out, so long after the request's.
    pub fn answered(&self, status: u16, took: Duration) {
        self.metrics.http.response(status);
        self.metrics.http.first_byte_seconds.observe(took.as_secs_f64());
        if let Some(pod) = &self.pod {
            pod.response(status);
            pod.first_byte_seconds.observe(took.as_secs_f64());
        }
    }

    /// A response has ended, so long after its request's head.
    pub fn ended(&self, took: Duration) {
        self.metrics.http.request_seconds.observe(took.as_secs_f64());
        if let Some(pod) = &self.pod {
            pod.request_seconds.observe(took.as_secs_f64());
        }
    }

    /// An instance was made in so long.
    pub fn instantiated(&self, took: Duration) {
        self.metrics.http.instantiate_seconds.observe(took.as_secs_f64());
        if let Some(pod) = &self.pod {
            pod.instantiate_seconds.observe(took.as_secs_f64());
        }
    }

    /// A request was refused for a limit.
    pub fn refused(&self) {
        self.metrics.http.refused.inc();
        if let Some(pod) = &self.pod {
            pod.refused.inc();
        }
    }

    /// A guest trapped.
    pub fn trapped(&self) {
        self.metrics.http.traps.inc();
        if let Some(pod) = &self.pod {
            pod.traps.inc();
        }
    }

    /// One more request has an instance; one less when it is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.metrics.http.in_flight.inc();
        if let Some(pod) = &self.pod {
            pod.in_flight.inc();
        }
        InFlight(self.clone())
    }

    /// One more waits for its turn; one less when it is dropped.
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
