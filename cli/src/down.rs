//! `hearth down`: stop a running `hearth up`, then sweep what is left.

use crate::{args::Where, ending::Ending, postgres, up};
use anyhow::{Context, bail};
use hearth_agent::agent;
use nix::sys::signal::Signal;
use std::{process::ExitCode, time::Duration};

/// Longer than all its graces together.
const STOP: Ending = Ending { signal: Signal::SIGTERM, deadline: Duration::from_secs(150) };

/// Stops and sweeps. Nothing to do is success.
pub async fn down(place: &Where) -> anyhow::Result<ExitCode> {
    if let Some(pid) = up::running(&place.dir) {
        println!("Stopping Hearth (process {pid}).");
        if !STOP.of(pid, || up::running(&place.dir) == Some(pid)).context("stopping Hearth")? {
            bail!("process {pid} does not stop");
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
