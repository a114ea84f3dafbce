//! Metrics of modules: look-ups, compiles, compiles ahead of a start, and the artifacts on disk.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

use super::declare::{Declare, PHASE_BUCKETS};
use super::{SOURCES, Source};

/// Counted by the module store in memory and by the compiles ahead of a start.
pub struct ModuleMetrics {
    lookups: [IntCounter; SOURCES.len()],
    /// Module files opened and read (a warm start opens none).
    pub reads: IntCounter,
    /// Modules prepared in memory.
    pub prepared: IntGauge,
    /// Modules that cannot be compiled, remembered for a while.
    pub rejected: IntGauge,
    /// Modules started on baseline code, by whether optimised code took its place.
    pub swaps: IntCounterVec,
    /// Images inspected before their first start, by result.
    pub images_ahead: IntCounterVec,
}

impl ModuleMetrics {
    pub(super) fn new(registry: &Registry) -> ModuleMetrics {
        let declare = Declare(registry);
        let lookups = declare.counters(
            "hearth_module_lookups_total",
            "Module look-ups by where the module was found.",
            &["source"],
        );
        ModuleMetrics {
            lookups: SOURCES.map(|(_, name)| lookups.with_label_values(&[name])),
            reads: declare
                .counter("hearth_module_reads_total", "Module files opened and read; a warm start opens none."),
            prepared: declare.gauge("hearth_modules_prepared", "Modules kept prepared in memory."),
            rejected: declare
                .gauge("hearth_modules_rejected", "Modules that cannot be compiled, remembered for a while."),
            swaps: declare.counters_of(
                "hearth_module_swaps_total",
                "Modules started on baseline code: `done` when optimised code took its place, `failed` when that could not be made.",
                "result",
                &["done", "failed"],
            ),
            images_ahead: declare.counters_of(
                "hearth_images_ahead_total",
                "Images looked at before a start of theirs, by what became of them: compiled, known already, not WebAssembly, late (not unpacked in time), failed.",
                "result",
                &["compiled", "known", "not_wasm", "late", "failed"],
            ),
        }
    }

    /// Counts a look-up.
    pub fn lookup(&self, source: Source) {
        self.lookups[source as usize].inc();
    }
}

/// Counted by the compile queue.
pub struct CompileMetrics {
    /// Processes of the optimising compiler, by result.
    pub results: IntCounterVec,
    /// Duration of each, in seconds.
    pub seconds: Histogram,
    /// Processes of the baseline compiler, by result.
    pub baseline_results: IntCounterVec,
    /// Duration of each, in seconds.
    pub baseline_seconds: Histogram,
    /// Compiles running or waiting.
    pub pending: IntGauge,
    /// Compile processes that run.
    pub running: IntGauge,
    /// Times that one was stopped while others had their turn.
    pub parked: IntCounter,
}

impl CompileMetrics {
    pub(super) fn new(registry: &Registry) -> CompileMetrics {
        let declare = Declare(registry);
        CompileMetrics {
            results: declare.counters_of(
                "hearth_compiles_total",
                "Compile processes by result.",
                "result",
                &["ok", "invalid", "limit", "crashed", "failed"],
            ),
            seconds: declare.histogram(
                "hearth_compile_seconds",
                "Duration of compile processes in seconds.",
                PHASE_BUCKETS,
            ),
            baseline_results: declare.counters_of(
                "hearth_baseline_compiles_total",
                "Processes of the baseline compiler by result; `unwanted`: what was looked at is no such service, `invalid`: the baseline compiler does not take it.",
                "result",
                &["ok", "invalid", "limit", "crashed", "failed", "unwanted"],
            ),
            baseline_seconds: declare.histogram(
                "hearth_baseline_compile_seconds",
                "Duration of the baseline compiler's processes in seconds.",
                PHASE_BUCKETS,
            ),
            pending: declare.gauge("hearth_compiles_pending", "Compiles running or waiting for their turn."),
            running: declare.gauge("hearth_compiles_running", "Compile processes that run now, stopped ones included."),
            parked: declare.counter(
                "hearth_compiles_parked_total",
                "Times that a compile process was stopped while compiles of others had their turn.",
            ),
        }
    }
}

/// Counted by the store of artifacts on disk.
pub struct StoreMetrics {
    /// Artifacts on disk.
    pub artifacts: IntGauge,
    /// Their bytes.
    pub bytes: IntGauge,
    /// `modules.store_bytes_max`.
    pub limit_bytes: IntGauge,
    /// Artifacts removed to keep the store within its limit.
    pub evictions: IntCounter,
    /// Artifacts found damaged, truncated or foreign, and compiled again.
    pub damaged: IntCounter,
    /// Artifacts that could not be written; their tasks ran from memory.
    pub write_failures: IntCounter,
}

impl StoreMetrics {
    pub(super) fn new(registry: &Registry) -> StoreMetrics {
        let declare = Declare(registry);
        StoreMetrics {
            artifacts: declare.gauge("hearth_module_store_artifacts", "Compiled artifacts on disk."),
            bytes: declare.gauge("hearth_module_store_bytes", "Bytes of the compiled artifacts on disk."),
            limit_bytes: declare.gauge(
                "hearth_module_store_limit_bytes",
                "Bytes that compiled artifacts may take on disk (modules.store_bytes_max).",
            ),
            evictions: declare.counter(
                "hearth_module_store_evictions_total",
                "Artifacts removed to keep the store within modules.store_bytes_max.",
            ),
            damaged: declare.counter(
                "hearth_module_store_damaged_total",
                "Artifacts found damaged, truncated or foreign, removed and compiled again.",
            ),
            write_failures: declare.counter(
                "hearth_module_store_write_failures_total",
                "Artifacts that could not be written to disk; their tasks ran from memory.",
            ),
        }
    }
}
