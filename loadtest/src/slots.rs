//! What a network slot costs: namespace, tap, link and address made on the spot, and one taken that was made ahead. A
//! router of its own, removed at the end.

use anyhow::Context;
use hearth_agent::network::{config::NetworkConfig, router};
use std::{
    collections::HashSet,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Slots that are made ahead.
const READY: usize = 8;
/// A slot is made in a fraction of a millisecond; more means that something is broken.
const REFILL_DEADLINE: Duration = Duration::from_secs(10);

/// Times of slots.
#[derive(Debug)]
pub struct Times {
    /// Made when it was asked for.
    pub made: Vec<Duration>,
    /// Taken, when it had been made ahead.
    pub taken: Vec<Duration>,
}

/// Measures `n` of each. `folder` is an empty one of the caller's. Blocks.
pub fn measure(folder: &Path, n: usize) -> anyhow::Result<Times> {
    let path = folder.join("router.netns");
    let mark = format!("hearth-{:08x}-", std::process::id());
    let times = both(&path, &mark, n);
    let swept = router::sweep(&path, &mark, &HashSet::new()).context("removing the bench's router");
    let times = times?;
    swept?;
    Ok(times)
}

fn both(path: &Path, mark: &str, n: usize) -> anyhow::Result<Times> {
    Ok(Times { made: times(path, mark, (0, n))?, taken: times(path, mark, (READY, n))? })
}

/// Takes `n` slots, one after the other, with `ready` made ahead before each.
fn times(path: &Path, mark: &str, (ready, n): (usize, usize)) -> anyhow::Result<Vec<Duration>> {
    let config = NetworkConfig { egress: true, ready_slots: ready, dns: Vec::new() };
    let slots = config.start(path, mark, HashSet::new())?;
    if let Err(reason) = slots.router() {
        anyhow::bail!("capsules have no way out here: {reason}");
    }
    // The first one is made at the start, as a trial.
    drop(slots.take()?);
    let mut times = Vec::with_capacity(n);
    for _ in 0..n {
        let start = Instant::now();
        while slots.ready() < ready {
            anyhow::ensure!(start.elapsed() < REFILL_DEADLINE, "no slot is made ahead");
            thread::sleep(Duration::from_millis(1));
        }
        let start = Instant::now();
        let taken = slots.take()?;
        times.push(start.elapsed());
        drop(taken);
    }
    Ok(times)
}
