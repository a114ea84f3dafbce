//! Metrics of starts: duration of each phase, of a whole start, results.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, Registry};

use super::declare::{Declare, PHASE_BUCKETS};
use super::{PHASES, Phase, SOURCES, Source};

/// Counted by [`crate::starts`] and by a task's Create and Start.
pub struct StartMetrics {
    phases: [Histogram; PHASES.len()],
    by_source: [Histogram; SOURCES.len()],
    of_container: [Histogram; SOURCES.len()],
    /// Starts that answered OK.
    pub ok: IntCounter,
    /// Creates and starts that answered an error.
    pub failed: IntCounter,
    /// Starts that were not measured from their container's creation, because the recorder's queue was full.
    pub records_dropped: IntCounter,
}

impl StartMetrics {
    pub(super) fn new(registry: &Registry) -> StartMetrics {
        let declare = Declare(registry);
        let phases = declare.histograms(
            "hearth_start_phase_seconds",
            "Duration of each phase of a task's start, in seconds.",
            &["phase"],
            PHASE_BUCKETS,
        );
        let starts = declare.histograms(
            "hearth_start_seconds",
            "Time hearthd needed from Create to the guest's first instruction, or to an HTTP component's port (without the caller's time between Create and Start), in seconds, by where the module came from.",
            &["source"],
            PHASE_BUCKETS,
        );
        let containers = declare.histograms(
            "hearth_container_start_seconds",
            "Time from the container's making by containerd (a pod's: of its snapshot, in CRI's CreateContainer; else of its bundle) to the guest's first instruction, in seconds, by where the module came from.",
            &["source"],
            PHASE_BUCKETS,
        );
        let results = declare.counters(
            "hearth_task_starts_total",
            "Starts by result; a Create that fails counts as an error.",
            &["result"],
        );
        StartMetrics {
            phases: PHASES.map(|(_, name)| phases.with_label_values(&[name])),
            by_source: SOURCES.map(|(_, name)| starts.with_label_values(&[name])),
            of_container: SOURCES.map(|(_, name)| containers.with_label_values(&[name])),
            ok: results.with_label_values(&["ok"]),
            failed: results.with_label_values(&["error"]),
            records_dropped: declare.counter(
                "hearth_start_records_dropped_total",
                "Starts that were not measured from their container's making, for want of room in a queue.",
            ),
        }
    }

    /// Records the duration of a phase.
    pub fn phase(&self, phase: Phase, took: Duration) {
        self.phases[phase as usize].observe(took.as_secs_f64());
    }

    /// Records the time that hearthd needed from Create to the guest's first instruction.
    pub fn start(&self, source: Source, took: Duration) {
        self.by_source[source as usize].observe(took.as_secs_f64());
    }

    /// Records the time from the container's creation by containerd to the guest's first instruction.
    pub fn container_start(&self, source: Source, took: Duration) {
        self.of_container[source as usize].observe(took.as_secs_f64());
    }
}
