//! Metrics of the Task API: latency and errors of each method.

use prometheus::{Histogram, IntCounterVec, Registry};

use super::declare::Declare;

/// Buckets of a call's latency, in seconds. `wait` lasts as long as its task and is above the last bucket.
const RPC_BUCKETS: &[f64] = &[5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2, 0.1, 0.5, 2.0, 10.0];

/// The Task API's methods, as labels.
pub const METHODS: [&str; 17] = [
    "state",
    "create",
    "start",
    "delete",
    "pids",
    "pause",
    "resume",
    "checkpoint",
    "kill",
    "exec",
    "resize_pty",
    "close_io",
    "update",
    "wait",
    "stats",
    "connect",
    "shutdown",
];

/// Counted by the server of the Task API.
pub struct RpcMetrics {
    latencies: [Histogram; METHODS.len()],
    /// Calls answered with an error, by method.
    pub errors: IntCounterVec,
}

impl RpcMetrics {
    pub(super) fn new(registry: &Registry) -> RpcMetrics {
        let declare = Declare(registry);
        let latencies = declare.histograms(
            "hearth_rpc_seconds",
            "Latency of Task API calls in seconds; wait is counted when it is answered.",
            &["method"],
            RPC_BUCKETS,
        );
        RpcMetrics {
            latencies: METHODS.map(|name| latencies.with_label_values(&[name])),
            errors: declare.counters_of(
                "hearth_rpc_errors_total",
                "Task API calls answered with an error.",
                "method",
                &METHODS,
            ),
        }
    }

    /// The latency of `METHODS[method]`, in seconds.
    pub fn latency(&self, method: usize) -> &Histogram {
        &self.latencies[method]
    }
}
