//! The context that all services of the daemon share: the configuration, the threads, the places of the node.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use hearth_base::config::{self, Live};
use hearth_observe::metrics::Metrics;

use crate::outgoing::context::OutgoingContext;
use hearth_wasm::places::Places;

/// The context that all services of the daemon share.
pub struct Http {
    live: Arc<Live>,
    /// Accepts clients and writes notes.
    pub runtime: Handle,
    /// Places for the requests of all services.
    pub places: Arc<Places>,
    /// For the requests that guests send, of services and of commands.
    pub outgoing: Arc<OutgoingContext>,
}

impl Http {
    /// With these threads for sockets, not for guests.
    pub fn new(live: Arc<Live>, runtime: Handle, metrics: Arc<Metrics>) -> Arc<Http> {
        let places = Places::new(live.now().http.instances_max);
        let outgoing = Arc::new(OutgoingContext::new(live.clone(), runtime.clone(), metrics));
        Arc::new(Http { live, runtime, places, outgoing })
    }

    /// The time from which on a request counts as slow; none if none does.
    pub fn slow_request(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.live.now().http.slow_request_ms)).filter(|slow| !slow.is_zero())
    }

    /// Lines of a container's access log in one second.
    pub fn access_log_lines_max(&self) -> u32 {
        self.live.now().http.access_log_lines_max
    }

    /// The limits, as they are now.
    pub fn config(&self) -> config::Http {
        self.live.now().http.clone()
    }
}
