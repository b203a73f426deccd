//! The rate of the host's time stamp counter.
//!
//! Under software emulation a guest reads the host's counter, but its kernel would have to find the rate out by
//! counting against an emulated timer: on a busy host it cannot, and hangs at boot (seen with Linux 6.12 on QEMU 7.2).
//! So it is told (`tsc_early_khz=`), which also makes its clock as good as the host's.

#![expect(unsafe_code, reason = "reads the counter")]

use std::time::{Duration, Instant};

/// How long is counted: 20 ms give some 10 ppm.
const INTERVAL: Duration = Duration::from_millis(20);
/// Times it is counted; the median rules out a count during which this thread was away.
const ROUNDS: usize = 5;

/// The counter's rate in kHz. Takes 100 ms.
pub fn measure_khz() -> u64 {
    let mut rates = [0; ROUNDS];
    for rate in &mut rates {
        let (start, from) = (Instant::now(), now());
        while start.elapsed() < INTERVAL {
            std::hint::spin_loop();
        }
        let (elapsed, to) = (start.elapsed(), now());
        *rate = (u128::from(to.wrapping_sub(from)) * 1_000_000 / elapsed.as_nanos()) as u64;
    }
    rates.sort_unstable();
    rates[ROUNDS / 2]
}

fn now() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (first, second) = (measure_khz(), measure_khz());
        assert!(first > 100_000, "{first} kHz");
        assert!(first.abs_diff(second) * 100 < first, "{first} and {second} kHz");
    }
}
