//! Metrics of all tasks together: how many live, how they end, which resources of the node they hold.

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Registry};

use super::declare::Declare;

/// Counted where tasks are created, started, ended and deleted.
pub struct TaskMetrics {
    /// Tasks alive, by state.
    pub by_state: IntGaugeVec,
    /// `rpc.tasks_max`.
    pub limit: IntGauge,
    /// 1 while the daemon takes no new tasks.
    pub draining: IntGauge,
    /// Tasks with series of their own, and tasks folded into one.
    pub series: IntGaugeVec,
    /// Guests that trapped.
    pub traps: IntCounter,
    /// Guests that ended because they were refused memory over their limit.
    pub oom_kills: IntCounter,
    /// 1 while the daemon refuses new containers for want of memory.
    pub memory_shortage: IntGauge,
    /// Mounts of root file systems and volumes.
    pub mounts: IntGauge,
    /// Native containers in pods.
    pub native_containers: IntGauge,
    /// Network namespaces created in advance.
    pub holders_ready: IntGauge,
    /// Processes started to hold a network namespace.
    pub holders_started: IntCounter,
}

impl TaskMetrics {
    pub(super) fn new(registry: &Registry) -> TaskMetrics {
        let declare = Declare(registry);
        TaskMetrics {
            by_state: declare.gauges_of(
                "hearth_tasks",
                "Tasks alive by state.",
                "state",
                &["created", "running", "paused", "stopped"],
            ),
            limit: declare.gauge("hearth_tasks_limit", "As many tasks as there may be (rpc.tasks_max)."),
            draining: declare.gauge("hearth_draining", "1 while the daemon takes no new tasks (hearthctl drain)."),
            series: declare.gauges_of(
                "hearth_task_series",
                "Tasks with hearth_task metrics of their own, and those folded into task=\"other\" (metrics.task_series_max).",
                "kind",
                &["own", "folded"],
            ),
            traps: declare.counter("hearth_traps_total", "Guests that ended by a trap."),
            oom_kills: declare.counter(
                "hearth_oom_kills_total",
                "Guests that ended because they were refused memory over their limit.",
            ),
            memory_shortage: declare.gauge(
                "hearth_memory_shortage",
                "1 while the daemon is near its memory limit and refuses new containers (memory.refuse_percent).",
            ),
            mounts: declare.gauge("hearth_mounts", "Mounts of tasks' roots and volumes that exist now."),
            native_containers: declare.gauge("hearth_native_containers", "Native containers in pods of this runtime."),
            holders_ready: declare
                .gauge("hearth_network_holders_ready", "Network namespaces made in advance, each with its process."),
            holders_started: declare.counter(
                "hearth_network_holders_started_total",
                "Processes started to hold a network namespace for a task.",
            ),
        }
    }
}
