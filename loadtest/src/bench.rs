//! `hearth-loadtest bench`: starts a Hearth of its own, measures each path against its aim and the floors in the same
//! run, prints the tables, writes `bench.json`, stops everything.

use crate::{
    client::Client,
    control::Control,
    floor,
    paths::{self, OneShot},
    progress::Progress,
    report::{HostFacts, Memory, Report},
    service::Service,
    stats::Summary,
};
use anyhow::{Context, bail};
use hearth_agent::config::Layout;
use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// Fewer runs are a trial, not a measurement.
const RUNS: usize = 50;

/// Arguments of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// Runs per path
    #[arg(long, default_value_t = RUNS, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub n: usize,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench.json")]
    pub out: PathBuf,
    /// Data folder of the measured Hearth: empty or not there, removed at the end; at most 50 bytes
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Folder of guest images and templates
    #[arg(long, env = "HEARTH_CACHE", default_value = "/var/cache/hearth")]
    pub cache: PathBuf,
    /// QEMU's program, for the bare restore
    #[arg(long, env = "HEARTH_QEMU_BIN", default_value = "/usr/bin/qemu-system-x86_64")]
    pub qemu: PathBuf,
}

/// What every measurement needs.
#[derive(Debug)]
pub struct Bench {
    /// HTTP.
    pub client: Client,
    /// gRPC.
    pub control: Control,
    /// Runs per path.
    pub n: usize,
    /// What is shown.
    pub progress: Progress,
}

/// Measures a Hearth of its own, which is stopped whatever happens. `dir`: its data folder. `measure` gets it and the
/// load averages before it was started.
pub async fn on_a_service<T>(
    dir: Option<&Path>,
    cache: &Path,
    measure: impl AsyncFnOnce(&mut Service, String) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let own = || format!("/tmp/hearth-bench-{}", std::process::id()).into();
    let dir = dir.map_or_else(own, Path::to_owned);
    let load = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    let load = load.split_ascii_whitespace().take(3).collect::<Vec<_>>().join(" ");
    if is_busy(&load) {
        println!("The machine is busy (load {load}): what it does besides will be in the numbers.");
    }
    let mut service = Service::start(&dir, cache)?;
    let outcome = tokio::select! {
        // A signal ends the run at once.
        biased;
        signal = hearth_service::shutdown::signal() => {
            signal.context("waiting for a signal").and_then(|()| bail!("stopped by a signal"))
        }
        outcome = measure(&mut service, load) => outcome,
    };
    println!("Stopping.");
    let stopped = service.stop().await;
    let outcome = outcome?;
    stopped?;
    Ok(outcome)
}

/// Runs the command.
pub async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let measured = async |service: &mut Service, load| measure(&args, service, load).await;
    let report = on_a_service(args.dir.as_deref(), &args.cache, measured).await?;
    report.write(&args.out)?;
    print!("{}", report.tables());
    println!("\nWritten to {}.", args.out.display());
    if args.n < RUNS {
        println!("A trial: medians count from n = {RUNS} on.");
    }
    Ok(if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// (pure) Whether more than half a CPU was used over the last minute, by the load averages.
fn is_busy(load: &str) -> bool {
    let last_minute = load.split_ascii_whitespace().next().and_then(|number| number.parse::<f64>().ok());
    last_minute.is_some_and(|last_minute| last_minute > 0.5)
}

async fn measure(args: &BenchArgs, service: &mut Service, load: String) -> anyhow::Result<Report> {
    let progress = Progress::new();
    let client = service.ready(&progress).await?;
    let control = Control::new(service.dir())?;
    let bench = Bench { client, control, n: args.n, progress };
    let host = bench.control.host().await?;
    let mut report = Report {
        host: HostFacts {
            cpus: host.cpus,
            load_average_at_start: load,
            engine: format!("{} {}", host.engine, host.engine_version),
            accelerator: host.accelerator,
        },
        ..Report::default()
    };
    let (bench, to) = (&bench, &mut report);
    to.floors.http_ready = timed(bench, to, "http_ready", floor::http(bench)).await;
    to.floors.guest_shell = phase(bench, to, "guest_shell", floor::guest_shell::measure(bench)).await;
    to.context_cell = timed(bench, to, "context_cell", paths::context_cell(bench)).await;
    to.oneshot_warm = one_shot(bench, to, OneShot::Warm).await;
    let idle = phase(bench, to, "idle_private_mb", paths::idle_private_mb(bench)).await;
    to.idle_private_mb = idle.map(|(value, n)| Memory { value, n });
    to.oneshot_restored = one_shot(bench, to, OneShot::Restored).await;
    to.burst8_restored = timed(bench, to, "burst8_restored", paths::burst(bench)).await;
    // After the others: it leaves an image with only the pages that this cell touches.
    to.oneshot_restored_cold = one_shot(bench, to, OneShot::Cold).await;
    let layout = Layout::new(service.dir(), &args.cache);
    let bare = async {
        paths::empty_pool(bench).await?;
        floor::bare_restore::measure(bench, &layout, &args.qemu).await
    };
    to.floors.bare_restore = timed(bench, to, "bare_restore", bare).await;
    Ok(report)
}

async fn one_shot(bench: &Bench, report: &mut Report, kind: OneShot) -> Option<Summary> {
    timed(bench, report, kind.name(), paths::one_shot(bench, kind)).await
}

/// A measurement of times.
async fn timed(
    bench: &Bench,
    report: &mut Report,
    name: &'static str,
    work: impl Future<Output = anyhow::Result<Vec<Duration>>>,
) -> Option<Summary> {
    let summary = async { Summary::of(&work.await?).context("nothing was measured") };
    let summary = phase(bench, report, name, summary).await?;
    let Summary { p50_ms, p95_ms, p99_ms, n } = summary;
    bench
        .progress
        .line(format!("{name}: p50 {p50_ms:.1} ms, p95 {p95_ms:.1} ms, p99 {p99_ms:.1} ms (n = {n})"));
    Some(summary)
}

/// A measurement, with its steps from `/metrics`. One that fails is noted and does not end the run.
async fn phase<T>(
    bench: &Bench,
    report: &mut Report,
    name: &'static str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> Option<T> {
    let work = async {
        let before = bench.client.metrics().await?;
        let value = work.await?;
        Ok((value, bench.client.metrics().await?.stages_since(&before)))
    };
    match work.await {
        Ok((value, stages)) => {
            report.stages.insert(name, stages);
            Some(value)
        }
        Err(error) => {
            let error: anyhow::Error = error;
            bench.progress.line(format!("{name} failed: {error:#}"));
            report.failed.insert(name, format!("{error:#}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_told_by_its_last_minute() {
        assert!(is_busy("1.80 0.10 0.10"));
        assert!(!is_busy("0.20 3.50 3.00"));
        assert!(!is_busy(""));
    }
}
