//! Percentiles of samples. Pure; nothing fails: no samples give no summary.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The summary of a set of durations, in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of samples.
    pub n: usize,
    /// The smallest sample.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile; with fewer than 100 samples it is the largest.
    pub p99: f64,
    /// The largest sample.
    pub max: f64,
    /// The arithmetic mean.
    pub mean: f64,
}

impl Summary {
    /// Summarises samples in any order.
    pub fn of(samples: impl IntoIterator<Item = Duration>) -> Option<Summary> {
        let mut micros: Vec<f64> = samples.into_iter().map(|sample| sample.as_nanos() as f64 / 1e3).collect();
        micros.sort_by(f64::total_cmp);
        let (&min, &max) = (micros.first()?, micros.last()?);
        let n = micros.len();
        Some(Summary {
            n,
            min: rounded(min),
            p50: rounded(nearest_rank(&micros, 50)),
            p90: rounded(nearest_rank(&micros, 90)),
            p99: rounded(nearest_rank(&micros, 99)),
            max: rounded(max),
            mean: rounded(micros.iter().sum::<f64>() / n as f64),
        })
    }
}

/// The nearest-rank percentile: the smallest sample that at least `percent` of 100 samples do not
/// exceed. It is always a sample, never a value between two. `sorted` is not empty.
fn nearest_rank(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// Tenths of a microsecond: the resolution of the clock, and of a reader.
fn rounded(micros: f64) -> f64 {
    (micros * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(values: impl IntoIterator<Item = u64>) -> Option<Summary> {
        Summary::of(values.into_iter().map(Duration::from_micros))
    }

    #[test]
    fn no_samples_give_no_summary() {
        assert_eq!(micros([]), None);
    }

    #[test]
    fn one_sample_is_every_percentile() {
        let summary = micros([7]).unwrap();
        assert_eq!((summary.n, summary.min, summary.max, summary.mean), (1, 7.0, 7.0, 7.0));
        assert_eq!((summary.p50, summary.p90, summary.p99), (7.0, 7.0, 7.0));
    }

    #[test]
    fn percentiles_are_nearest_ranks_whatever_the_order() {
        let summary = micros((1..=200).rev()).unwrap();
        assert_eq!((summary.p50, summary.p90, summary.p99), (100.0, 180.0, 198.0));
        assert_eq!((summary.min, summary.max, summary.mean), (1.0, 200.0, 100.5));
    }

    #[test]
    fn the_99th_percentile_of_few_samples_is_the_largest() {
        assert_eq!(micros(1..=99).unwrap().p99, 99.0);
        assert_eq!(micros(1..=100).unwrap().p99, 99.0);
        assert_eq!(micros(1..=101).unwrap().p99, 100.0);
    }

    #[test]
    fn nanoseconds_are_kept_to_a_tenth_of_a_microsecond() {
        let summary = Summary::of([Duration::from_nanos(1_260)]).unwrap();
        assert_eq!(summary.p50, 1.3);
    }
}
