//! `hearth down`: stop a running `hearth up`, then sweep what is left.

use crate::{args::Where, postgres, up};
use anyhow::{Context, bail};
use hearth_agent::agent;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

const STOP_DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at a process that is no child of ours.
const PAUSE: Duration = Duration::from_millis(50);

/// Stops and sweeps. Nothing to do is success.
pub async fn down(place: &Where) -> anyhow::Result<ExitCode> {
    if let Some(pid) = up::running(&place.dir) {
        println!("Stopping Hearth (process {pid}).");
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("stopping Hearth")?;
        let start = Instant::now();
        while up::running(&place.dir) == Some(pid) {
            if STOP_DEADLINE < start.elapsed() {
                bail!("process {pid} does not stop");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    let swept = agent::clean(&up::layout(place)).await.context("sweeping")?;
    let database = postgres::stop_leftover(&place.dir).context("the private database")?;
    if swept.processes + swept.folders > 0 || database {
        println!(
            "Swept {} processes and {} folders{}.",
            swept.processes,
            swept.folders,
            if database { ", and the private database" } else { "" }
        );
    }
    println!("Hearth is down.");
    Ok(ExitCode::SUCCESS)
}
