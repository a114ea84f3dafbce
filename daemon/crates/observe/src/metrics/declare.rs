//! Declares metrics in a registry. Names and options are constants, so a mistake is a panic in every test.

use prometheus::core::Collector;
use prometheus::{
    Counter, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Buckets of a start's phases and of a request, in seconds: from a microsecond to a slow compile.
pub(super) const PHASE_BUCKETS: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0,
    5.0, 10.0, 30.0,
];

const CONSTANT: &str = "a metric's name and labels are constants";

/// Declares metrics in the registry. Each function panics if the name is taken.
pub(super) struct Declare<'a>(pub &'a Registry);

impl Declare<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> C {
        self.0.register(Box::new(collector.clone())).expect("each name is declared once");
        collector
    }

    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help).expect(CONSTANT))
    }

    /// A counter of seconds.
    pub fn float_counter(&self, name: &str, help: &str) -> Counter {
        self.add(Counter::new(name, help).expect(CONSTANT))
    }

    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels).expect(CONSTANT))
    }

    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help).expect(CONSTANT))
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels).expect(CONSTANT))
    }

    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(options).expect(CONSTANT))
    }

    pub fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(HistogramVec::new(options, labels).expect(CONSTANT))
    }

    /// Counters with one label, of which each of `values` exists at once: its series is 0 before its first event.
    pub fn counters_of(&self, name: &str, help: &str, label: &str, values: &[&str]) -> IntCounterVec {
        let counters = self.counters(name, help, &[label]);
        for value in values {
            counters.with_label_values(&[value]);
        }
        counters
    }

    /// The counters of one label with these values, in their order. Each exists at once.
    pub fn each_counter<const N: usize>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: [&str; N],
    ) -> [IntCounter; N] {
        let counters = self.counters(name, help, &[label]);
        values.map(|value| counters.with_label_values(&[value]))
    }

    /// Gauges with one label, of which each of `values` exists at once.
    pub fn gauges_of(&self, name: &str, help: &str, label: &str, values: &[&str]) -> IntGaugeVec {
        let gauges = self.gauges(name, help, &[label]);
        for value in values {
            gauges.with_label_values(&[value]);
        }
        gauges
    }
}
