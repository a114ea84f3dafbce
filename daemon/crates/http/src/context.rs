//! What all services of the daemon share.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use hearth_base::config::{self, Live};
use hearth_observe::metrics::Metrics;

use crate::outgoing;

/// What all services of the daemon share.
pub struct Http {
    /// The daemon's configuration.
    live: Arc<Live>,
    /// Where connections are served.
    pub runtime: Handle,
    /// Places for the requests of all containers.
    pub places: Arc<Semaphore>,
    /// How guests' own requests trust.
    pub tls: outgoing::tls::Configurations,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

impl Http {
    /// Connections are served on `runtime`.
    pub fn new(live: Arc<Live>, runtime: Handle, metrics: Arc<Metrics>) -> Arc<Http> {
        let places = Arc::new(Semaphore::new(live.now().http.instances_max));
        Arc::new(Http { live, runtime, places, tls: outgoing::tls::Configurations::default(), metrics })
    }

    /// Limits, as they are now.
    pub fn config(&self) -> config::Http {
        self.live.now().http.clone()
    }
}
