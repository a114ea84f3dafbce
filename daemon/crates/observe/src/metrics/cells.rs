//! Metrics of cells: the processes of pods at isolation level `pod`.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

use super::declare::Declare;

/// Counted by the node's daemon.
pub struct CellMetrics {
    /// Cells that serve.
    pub living: IntGauge,
    /// Processes made in advance.
    pub spares: IntGauge,
    /// Cells that got their orders.
    pub started: IntCounter,
    /// Cells that have ended, by the reason.
    pub ended: IntCounterVec,
}

impl CellMetrics {
    pub(super) fn new(registry: &Registry) -> CellMetrics {
        let declare = Declare(registry);
        CellMetrics {
            living: declare.gauge("hearth_cells", "Pods with a process of their own (isolation level pod)."),
            spares: declare.gauge("hearth_cell_spares", "Processes made in advance for such pods (isolation.spares)."),
            started: declare.counter("hearth_cells_started_total", "Processes started for such pods."),
            ended: declare.counters_of(
                "hearth_cells_ended_total",
                "Such processes that have ended, by the reason.",
                "reason",
                &["done", "out_of_memory", "died"],
            ),
        }
    }
}
