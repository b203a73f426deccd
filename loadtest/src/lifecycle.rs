//! `hearth-loadtest lifecycle`: pause, resume, fork, and many capsules at once, each with its aim, in one run on a
//! Hearth of its own.

use crate::{
    bench::on_a_service,
    capsules::Capsules,
    control::Control,
    progress::Progress,
    service::Service,
    slots,
    stats::{Summary, median},
};
use anyhow::Context;
use hearth_agent::usage::meminfo_kib;
use hearth_proto::{id::CapsuleId, wire::agent::Capture};
use serde::Serialize;
use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

/// Copies of a fork that is measured.
const COPIES: usize = 10;
/// Capsules that are there at once.
const PRESENT: usize = 50;
/// Forks of [`COPIES`] that are measured.
const FORKS: usize = 5;
/// Twenty megabytes that no page shares.
const WRITE: &str = "import os\nblock = os.urandom(20_000_000)";

/// Arguments of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct LifecycleArgs {
    /// Runs per measurement
    #[arg(long, default_value_t = 20, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pub n: usize,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench-lifecycle.json")]
    pub out: PathBuf,
    /// Data folder of the measured Hearth: empty or not there, removed at the end; at most 50 bytes
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Folder of guest images and templates
    #[arg(long, env = "HEARTH_CACHE", default_value = "/var/cache/hearth")]
    pub cache: PathBuf,
}

/// One measured value against its aim.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: &'static str,
    /// At most this is asked for, in `unit`.
    pub aim: Option<f64>,
    /// `ms`, `MB` or `ratio`.
    pub unit: &'static str,
    /// The median.
    pub p50: f64,
    /// The 95th and 99th percentile, of times.
    pub p95: Option<f64>,
    /// As above.
    pub p99: Option<f64>,
    /// How many were measured.
    pub n: usize,
}

/// Everything measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Engine, accelerator, processors.
    pub host: String,
    /// Load averages before anything was started.
    pub load_average_at_start: String,
    /// In the order of measuring.
    pub rows: Vec<Row>,
}

struct Bench {
    capsules: Capsules,
    control: Control,
    progress: Progress,
    n: usize,
}

/// Runs the command.
pub async fn run(args: LifecycleArgs) -> anyhow::Result<ExitCode> {
    let measured = async |service: &mut Service, load| measure(&args, service, load).await;
    let report = on_a_service(args.dir.as_deref(), &args.cache, measured).await?;
    if let Some(folder) = args.out.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(&args.out, format!("{}\n", serde_json::to_string_pretty(&report)?))
        .with_context(|| args.out.display().to_string())?;
    print!("{}", table(&report));
    println!("\nWritten to {}.", args.out.display());
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &LifecycleArgs, service: &mut Service, load: String) -> anyhow::Result<Report> {
    let progress = Progress::new();
    let client = service.ready(&progress).await?;
    let control = Control::new(service.dir())?;
    control.set_pool(0).await?;
    control.quiet(&client, 0).await?;
    let host = control.host().await?;
    let bench = Bench { capsules: control.capsules_client(), control, progress, n: args.n };
    let mut report = Report {
        host: format!("{} {} ({}), {} CPUs", host.engine, host.engine_version, host.accelerator, host.cpus),
        load_average_at_start: load,
        rows: Vec::new(),
    };
    report.rows.extend(pause_and_resume(&bench).await.context("pause and resume")?);
    report.rows.extend(fork(&bench).await.context("fork")?);
    report.rows.extend(many(&bench).await.context("many capsules")?);
    report.rows.extend(slots(&bench).await.context("network slots")?);
    Ok(report)
}

fn row(name: &'static str, aim: Option<f64>, times: &[Duration]) -> anyhow::Result<Row> {
    let Summary { p50_ms, p95_ms, p99_ms, n } = Summary::of(times).context("nothing was measured")?;
    Ok(Row { name, aim, unit: "ms", p50: p50_ms, p95: Some(p95_ms), p99: Some(p99_ms), n })
}

async fn written(bench: &Bench) -> anyhow::Result<CapsuleId> {
    let id = bench.capsules.restore().await?;
    bench.capsules.answer(id).await?;
    bench.capsules.run(id, WRITE).await?;
    Ok(id)
}

/// A pause with 20 MB written, and the way back to the first answer. Their floors are QEMU's own part of a pause (its
/// device state), and the answer of a capsule that is restored from its template.
async fn pause_and_resume(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let phase = bench.progress.phase("pause, resume", bench.n);
    let (mut pauses, mut still, mut device, mut resumes) = (vec![], vec![], vec![], vec![]);
    for run in 0..=bench.n {
        let id = written(bench).await?;
        let start = Instant::now();
        let Capture { stood_still_us, device_us, .. } = bench.capsules.pause(id).await?;
        let paused = start.elapsed();
        let start = Instant::now();
        bench.capsules.resume(id).await?;
        bench.capsules.answer(id).await?;
        let resumed = start.elapsed();
        bench.capsules.destroy(id).await?;
        // The first is a warm-up.
        if 0 < run {
            pauses.push(paused);
            still.push(Duration::from_micros(stood_still_us));
            device.push(Duration::from_micros(device_us));
            resumes.push(resumed);
            phase.step();
        }
    }
    Ok(vec![
        row("pause, 20 MB written", Some(100.0), &pauses)?,
        row("  of which the device state (floor)", None, &device)?,
        row("  from stopped processors to the end", None, &still)?,
        row("resume to the first answer", Some(150.0), &resumes)?,
    ])
}

/// How long a fork's source stands still, and ten copies that answer.
async fn fork(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let phase = bench.progress.phase("fork", bench.n + FORKS);
    let (mut still, mut ten) = (vec![], vec![]);
    let source = bench.capsules.restore().await?;
    bench.capsules.answer(source).await?;
    for _ in 0..bench.n {
        let (copies, reply) = bench.capsules.fork(source, 1).await?;
        let capture = reply.capture.context("a fork without figures")?;
        still.push(Duration::from_micros(capture.stood_still_us));
        destroy(bench, copies).await?;
        phase.step();
    }
    for _ in 0..FORKS {
        let start = Instant::now();
        let (copies, _) = bench.capsules.fork(source, COPIES).await?;
        let answers = copies.iter().map(|id| bench.capsules.answer(*id));
        futures::future::try_join_all(answers).await?;
        ten.push(start.elapsed());
        destroy(bench, copies).await?;
        phase.step();
    }
    bench.capsules.destroy(source).await?;
    Ok(vec![
        row("fork: processors stopped", Some(30.0), &still)?,
        row("fork: ten copies answering", Some(1200.0), &ten)?,
    ])
}

async fn destroy(bench: &Bench, ids: Vec<CapsuleId>) -> anyhow::Result<()> {
    futures::future::try_join_all(ids.into_iter().map(|id| bench.capsules.destroy(id))).await?;
    Ok(())
}

/// Restore to the first answer alone and beside fifty idle capsules, and what these cost.
async fn many(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let phase = bench.progress.phase("fifty capsules", 2 * bench.n + PRESENT);
    let alone = restores(bench, &phase).await?;
    // The image is filled by now: it belongs to the baseline as the page cache does.
    let before = meminfo_kib("MemAvailable")?;
    let mut present = Vec::with_capacity(PRESENT);
    for _ in 0..PRESENT {
        present.push(bench.capsules.restore().await?);
        phase.step();
    }
    let used = before.saturating_sub(meminfo_kib("MemAvailable")?);
    let mut private = Vec::with_capacity(PRESENT);
    for id in &present {
        private.push(bench.control.private_kb(id.to_string()).await? as f64 / 1000.0);
    }
    let beside = restores(bench, &phase).await?;
    destroy(bench, present).await?;
    let alone_row = row("restore to the first answer, alone", None, &alone)?;
    let beside_row = row("restore to the first answer, beside 50", None, &beside)?;
    let value = |name, aim, unit, p50, n| Row { name, aim, unit, p50, p95: None, p99: None, n };
    let ratio = beside_row.p50 / alone_row.p50;
    Ok(vec![
        value("50 idle capsules, by MemAvailable", Some(2500.0), "MB", used as f64 / 1000.0 * 1.024, 1),
        value("  private memory of one", None, "MB", median(&private).unwrap_or_default() * 1.024, PRESENT),
        alone_row,
        beside_row,
        value("  ratio of the two", Some(1.15), "", ratio, bench.n),
    ])
}

/// Network slots, made on the spot and made ahead.
async fn slots(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let _phase = bench.progress.phase("network slots", 0);
    let (folder, n) = (tempfile::tempdir()?, bench.n * 10);
    let path = folder.path().to_owned();
    let times = tokio::task::spawn_blocking(move || slots::measure(&path, n)).await??;
    Ok(vec![
        row("network slot, made ahead", Some(1.0), &times.taken)?,
        row("network slot, made on the spot", Some(1.0), &times.made)?,
    ])
}

async fn restores(bench: &Bench, phase: &crate::progress::Phase) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(bench.n);
    for _ in 0..bench.n {
        let start = Instant::now();
        let id = bench.capsules.restore().await?;
        bench.capsules.answer(id).await?;
        times.push(start.elapsed());
        bench.capsules.destroy(id).await?;
        phase.step();
    }
    Ok(times)
}

/// (pure) The table.
fn table(report: &Report) -> String {
    let mut text = format!("\n{}, load before: {}\n", report.host, report.load_average_at_start);
    let number = |value: Option<f64>, unit: &str| {
        let decimals = if unit.is_empty() { 2 } else { 1 };
        value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
    };
    text += &format!("{:40} {:>9} {:>11} {:>9} {:>9} {:>4}  met\n", "", "at most", "p50", "p95", "p99", "n");
    for row in &report.rows {
        let met = match row.aim {
            None => String::new(),
            Some(aim) if row.p50 <= aim => "yes".to_owned(),
            Some(aim) => format!("NO, by {} {}", number(Some(row.p50 - aim), row.unit), row.unit),
        };
        text += &format!(
            "{:40} {:>9} {:>8} {:2} {:>9} {:>9} {:>4}  {met}\n",
            row.name,
            number(row.aim, row.unit),
            number(Some(row.p50), row.unit),
            row.unit,
            number(row.p95, row.unit),
            number(row.p99, row.unit),
            row.n,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_aim_says_by_how_much_and_a_floor_has_none() {
        let times = [Duration::from_millis(120)];
        let rows = vec![row("pause", Some(100.0), &times).unwrap(), row("floor", None, &times).unwrap()];
        let text = table(&Report { rows, ..Report::default() });
        assert!(text.contains("NO, by 20.0 ms"), "{text}");
        assert_eq!(text.matches("yes").count() + text.matches("NO").count(), 1, "{text}");
    }
}
