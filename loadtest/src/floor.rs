//! What the measured paths are compared with, taken in the same run on the same machine: the least that each could
//! cost with nothing of Hearth around it.

pub mod bare_restore;
pub mod guest_shell;

use crate::bench::Bench;
use std::time::Duration;

/// Round trips before the first that counts.
const WARM_UP: usize = 10;

/// A request that the gateway answers by itself: the cost of HTTP.
pub async fn http(bench: &Bench) -> anyhow::Result<Vec<Duration>> {
    let phase = bench.progress.phase("floor: http", WARM_UP + bench.n);
    let mut times = Vec::with_capacity(bench.n);
    for run in 0..WARM_UP + bench.n {
        let timed = bench.client.get("/health").await?;
        if WARM_UP <= run {
            times.push(timed.took);
        }
        phase.step();
    }
    Ok(times)
}
