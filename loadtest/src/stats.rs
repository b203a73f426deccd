//! (pure) What a series of measured times says.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Percentiles of a series, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The median.
    pub p50_ms: f64,
    /// 95 of 100 were at most this.
    pub p95_ms: f64,
    /// 99 of 100 were at most this.
    pub p99_ms: f64,
    /// How many were measured.
    pub n: usize,
}

impl Summary {
    /// Percentiles by nearest rank; `None` of nothing.
    pub fn of(times: &[Duration]) -> Option<Self> {
        let mut sorted: Vec<f64> = times.iter().copied().map(millis).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            p50_ms: nearest_rank(&sorted, 50)?,
            p95_ms: nearest_rank(&sorted, 95)?,
            p99_ms: nearest_rank(&sorted, 99)?,
            n: sorted.len(),
        })
    }
}

/// Milliseconds with three decimals.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The smallest value that `percent` of 100 values do not exceed. `sorted` ascends; `percent` is 1 to 100.
pub fn nearest_rank(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The median of any values; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    nearest_rank(&sorted, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        let summary = Summary::of(&times).unwrap();
        assert_eq!(summary, Summary { p50_ms: 50.0, p95_ms: 95.0, p99_ms: 99.0, n: 100 });
    }

    #[test]
    fn few_values_have_percentiles_and_none_has_none() {
        let summary = Summary::of(&[Duration::from_micros(1500), Duration::from_micros(500)]).unwrap();
        assert_eq!(summary, Summary { p50_ms: 0.5, p95_ms: 1.5, p99_ms: 1.5, n: 2 });
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn the_median_of_five_is_the_third() {
        assert_eq!(median(&[9.0, 1.0, 5.0, 3.0, 7.0]), Some(5.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn ranks_follow_the_definition() {
        // The example of the nearest-rank method: 15 20 35 40 50.
        let sorted = [15.0, 20.0, 35.0, 40.0, 50.0];
        let ranks = [5, 30, 40, 50, 100].map(|percent| nearest_rank(&sorted, percent));
        assert_eq!(ranks, [15.0, 20.0, 20.0, 35.0, 50.0].map(Some));
    }
}
