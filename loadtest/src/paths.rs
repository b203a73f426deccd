//! The measured ways to an answer. Each is a closed loop: one request after the other, the next only when everything
//! that the last one left behind is over.

use crate::{bench::Bench, client::Timed, stats};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Runs before the first that counts.
const WARM_UP: usize = 3;
/// Warm capsules kept while hits are measured: the default of `hearth up`.
const POOL: u32 = 4;
/// Requests of a burst.
const BURST: usize = 8;
/// Bursts that are measured.
const BURSTS: usize = 5;
/// Capsules whose memory is measured.
const IDLE: u32 = 5;
/// A capsule's counters are added to `/metrics` when it ends, soon after its answer.
const NOTE_DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Where a one-shot's capsule comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OneShot {
    /// Out of a full pool.
    Warm,
    /// Restored on demand; the image has the pages it needs.
    Restored,
    /// Restored on demand; the image is empty.
    Cold,
}

impl OneShot {
    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "oneshot_warm",
            Self::Restored => "oneshot_restored",
            Self::Cold => "oneshot_restored_cold",
        }
    }

    /// What the answer must say of its capsule.
    fn source(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Restored | Self::Cold => "restored",
        }
    }

    fn pool(self) -> u32 {
        match self {
            Self::Warm => POOL,
            Self::Restored | Self::Cold => 0,
        }
    }
}

/// Cells in the default context of one capsule.
pub async fn context_cell(bench: &Bench) -> anyhow::Result<Vec<Duration>> {
    let phase = bench.progress.phase("context_cell", WARM_UP + bench.n);
    bench.control.set_pool(POOL).await?;
    let capsule = bench.client.post("/v1/capsules", &json!({})).await?.body;
    let id = capsule.get("id").and_then(Value::as_str).context("the new capsule's id")?;
    let path = format!("/v1/capsules/{id}/execute");
    bench.control.quiet(&bench.client, POOL).await?;
    let mut times = Vec::with_capacity(bench.n);
    for run in 0..WARM_UP + bench.n {
        let timed = bench.client.post(&path, &cell()).await?;
        check(&timed, None)?;
        if WARM_UP <= run {
            times.push(timed.took);
        }
        phase.step();
    }
    bench.client.delete(&format!("/v1/capsules/{id}")).await?;
    Ok(times)
}

/// `POST /v1/execute`, a fresh capsule each time.
pub async fn one_shot(bench: &Bench, kind: OneShot) -> anyhow::Result<Vec<Duration>> {
    let Bench { client, control, n, progress, .. } = bench;
    let phase = progress.phase(kind.name(), WARM_UP + n);
    control.set_pool(kind.pool()).await?;
    control.quiet(client, kind.pool()).await?;
    let mut times = Vec::with_capacity(*n);
    for run in 0..WARM_UP + n {
        if kind == OneShot::Cold {
            control.evict().await?;
        }
        control.quiet(client, kind.pool()).await?;
        let faults = faults(bench).await?;
        let timed = client.post("/v1/execute", &cell()).await?;
        check(&timed, Some(kind.source()))?;
        if WARM_UP <= run {
            times.push(timed.took);
        }
        if kind == OneShot::Cold {
            faults_served(bench, faults).await?;
        }
        phase.step();
    }
    Ok(times)
}

/// Eight at once on an empty pool: the time until the last has its answer.
pub async fn burst(bench: &Bench) -> anyhow::Result<Vec<Duration>> {
    let phase = bench.progress.phase("burst8_restored", 1 + BURSTS);
    bench.control.set_pool(0).await?;
    let mut times = Vec::with_capacity(BURSTS);
    for run in 0..=BURSTS {
        bench.control.quiet(&bench.client, 0).await?;
        let cell = cell();
        let requests = (0..BURST).map(|_| bench.client.post("/v1/execute", &cell));
        let start = Instant::now();
        let answers = futures::future::join_all(requests).await;
        let took = start.elapsed();
        for answer in answers {
            check(&answer?, Some("restored"))?;
        }
        if 0 < run {
            times.push(took);
        }
        phase.step();
    }
    Ok(times)
}

/// Private memory of capsules that were restored, answered one handshake and are parked: the median in MiB, and how
/// many there were.
pub async fn idle_private_mb(bench: &Bench) -> anyhow::Result<(f64, usize)> {
    let Bench { client, control, progress, .. } = bench;
    let _phase = progress.phase("idle_private_mb", 0);
    // A fresh pool: capsules that were parked long ago may have been worked in since.
    empty_pool(bench).await?;
    control.set_pool(IDLE).await?;
    control.quiet(client, IDLE).await?;
    let mut values = Vec::new();
    for id in control.parked().await? {
        let private_kb = control.private_kb(id).await?;
        if private_kb == 0 {
            bail!("the agent could not measure a capsule's memory");
        }
        values.push(private_kb as f64 / 1024.0);
    }
    let value = stats::median(&values).context("no capsule is parked")?;
    Ok(((value * 100.0).round() / 100.0, values.len()))
}

/// Drains the pool and waits until nothing is under way.
pub async fn empty_pool(bench: &Bench) -> anyhow::Result<()> {
    bench.control.set_pool(0).await?;
    bench.control.quiet(&bench.client, 0).await
}

fn cell() -> Value {
    json!({ "code": "print(1+1)" })
}

/// The answer must be right, and its capsule must have come the wanted way.
fn check(timed: &Timed, source: Option<&str>) -> anyhow::Result<()> {
    let body = &timed.body;
    if body.get("stdout").and_then(Value::as_str) != Some("2\n") {
        bail!("print(1+1) gave {body}");
    }
    let came = body.pointer("/timings/source").and_then(Value::as_str);
    if source.is_some() && came != source {
        bail!("the capsule came {came:?}, not {source:?}: {body}");
    }
    Ok(())
}

/// Page faults that pagers of ended capsules served.
async fn faults(bench: &Bench) -> anyhow::Result<f64> {
    Ok(bench.client.metrics().await?.value("hearth_agent_faults_total").unwrap_or(0.0))
}

/// Waits until the last capsule's faults are counted; there must be some.
async fn faults_served(bench: &Bench, before: f64) -> anyhow::Result<()> {
    let start = Instant::now();
    while faults(bench).await? <= before {
        if NOTE_DEADLINE < start.elapsed() {
            bail!("the image was evicted, yet the pager served no fault");
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(body: Value) -> Timed {
        Timed { body, took: Duration::ZERO }
    }

    #[test]
    fn a_wrong_answer_or_source_is_refused() {
        let right = json!({ "stdout": "2\n", "timings": { "source": "warm" } });
        assert!(check(&timed(right.clone()), Some("warm")).is_ok());
        assert!(check(&timed(right.clone()), None).is_ok());
        assert!(check(&timed(right), Some("restored")).is_err());
        assert!(check(&timed(json!({ "stdout": "3\n" })), None).is_err());
        assert!(check(&timed(json!({})), None).is_err());
    }
}
