//! Metrics of the scheduler and of the engines: workers, CPU time, slots of the pool.

use prometheus::{Counter, IntCounter, IntGauge, IntGaugeVec, Registry};

use super::declare::Declare;

/// Counted by the scheduler.
pub struct SchedulerMetrics {
    /// Guests that can run and wait for a worker.
    pub run_queue: IntGauge,
    /// Worker threads, by state.
    pub workers: IntGaugeVec,
    /// Workers replaced because they were blocked.
    pub workers_replaced: IntCounter,
    /// CPU time spent in guests, in seconds.
    pub cpu_seconds: Counter,
    /// Times that a guest had to wait for its CPU quota.
    pub throttled: IntCounter,
    /// Time that guests waited for their CPU quotas, in seconds.
    pub throttled_seconds: Counter,
    /// Times that a guest had to wait because its container blocks as many workers as it may.
    pub held: IntCounter,
    /// Polls of guests that went on for long after the end of their slice.
    pub slice_overruns: IntCounter,
}

impl SchedulerMetrics {
    pub(super) fn new(registry: &Registry) -> SchedulerMetrics {
        let declare = Declare(registry);
        SchedulerMetrics {
            run_queue: declare.gauge("hearth_run_queue", "Guests that can run and wait for a worker."),
            workers: declare.gauges_of(
                "hearth_workers",
                "Threads that run guests, by state; blocked: in a system call for long.",
                "state",
                &["idle", "running", "blocked"],
            ),
            workers_replaced: declare.counter(
                "hearth_workers_replaced_total",
                "Workers replaced because they were blocked in a guest's system call.",
            ),
            cpu_seconds: declare.float_counter("hearth_guest_cpu_seconds_total", "CPU time spent in guests."),
            throttled: declare
                .counter("hearth_guest_throttled_total", "Times that a guest had to wait for its CPU quota."),
            throttled_seconds: declare.float_counter(
                "hearth_guest_throttled_seconds_total",
                "Time that guests waited for their CPU quotas, in seconds.",
            ),
            held: declare.counter(
                "hearth_guest_held_total",
                "Times that a guest had to wait because its container blocks as many workers as it may (tenant.blocked_workers_max).",
            ),
            slice_overruns: declare.counter(
                "hearth_guest_slice_overruns_total",
                "Times that a guest was in one poll for long after the end of its slice: in a system call, or on a starved node.",
            ),
        }
    }
}

/// Counted by the engines and the slots of their pool.
pub struct EngineMetrics {
    /// The pool's slots, by state.
    pub pool_slots: IntGaugeVec,
    /// Guests running outside the pool.
    pub on_demand_instances: IntGauge,
    fingerprint: IntGaugeVec,
}

impl EngineMetrics {
    pub(super) fn new(registry: &Registry) -> EngineMetrics {
        let declare = Declare(registry);
        EngineMetrics {
            pool_slots: declare.gauges_of(
                "hearth_pool_slots",
                "Slots of the pooling allocator by state.",
                "state",
                &["used", "free"],
            ),
            on_demand_instances: declare
                .gauge("hearth_on_demand_instances", "Guests running outside the pool because it was full."),
            fingerprint: declare.gauges(
                "hearth_engine_info",
                "Constant 1, labelled by the engine's fingerprint: artifacts of another are compiled again.",
                &["fingerprint"],
            ),
        }
    }

    /// Records the fingerprint of this daemon's engine.
    pub fn fingerprint(&self, fingerprint: &str) {
        self.fingerprint.with_label_values(&[fingerprint]).set(1);
    }
}
