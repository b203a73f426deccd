//! How long to wait before the next try. Pure, but for the one source of randomness.

use std::time::Duration;

/// Doubling waits between `first` and `most`, each jittered down to its half, so that parts which failed together
/// do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) most: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row (at least one). `unit` is a random number in `[0, 1)`.
    pub(crate) fn delay(self, failures: u32, unit: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let full = self.first.saturating_mul(1 << doublings).min(self.most);
        full.mul_f64(0.5 + unit.clamp(0.0, 1.0) / 2.0)
    }
}

/// A random number in `[0, 1)`; one half when the kernel has no randomness to give.
pub(crate) fn unit() -> f64 {
    getrandom::u32().map_or(0.5, |value| f64::from(value) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_wait_is_bounded_and_never_zero(failures in 0u32..1000, unit in 0.0f64..1.0) {
            let backoff = Backoff { first: Duration::from_millis(200), most: Duration::from_secs(10) };
            let delay = backoff.delay(failures, unit);
            prop_assert!(delay >= Duration::from_millis(100));
            prop_assert!(delay <= Duration::from_secs(10));
        }

        #[test]
        fn more_failures_never_wait_less(failures in 1u32..100, unit in 0.0f64..1.0) {
            let backoff = Backoff { first: Duration::from_millis(200), most: Duration::from_secs(10) };
            prop_assert!(backoff.delay(failures, unit) <= backoff.delay(failures + 1, unit));
        }
    }

    #[test]
    fn randomness_stays_in_its_interval() {
        for _ in 0..100 {
            let unit = unit();
            assert!((0.0..1.0).contains(&unit), "{unit}");
        }
    }
}
