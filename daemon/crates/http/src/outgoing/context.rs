//! The context that the clients of all containers share.

use std::sync::Arc;

use tokio::runtime::Handle;

use hearth_base::config::{self, Live};
use hearth_observe::metrics::Metrics;

use super::tls_configurations::Configurations;

/// The context that the clients of all containers share.
pub struct OutgoingContext {
    live: Arc<Live>,
    /// Where requests are sent from.
    pub runtime: Handle,
    /// The daemon's metrics.
    pub metrics: Arc<Metrics>,
    /// TLS for each set of certificates in use.
    pub configurations: Configurations,
}

impl OutgoingContext {
    /// Requests are sent on `runtime`.
    pub fn new(live: Arc<Live>, runtime: Handle, metrics: Arc<Metrics>) -> OutgoingContext {
        OutgoingContext { live, runtime, metrics, configurations: Configurations::default() }
    }

    /// The limits, as they are now.
    pub fn config(&self) -> config::Http {
        self.live.now().http.clone()
    }
}
