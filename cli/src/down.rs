//! `hearth down`: stop a running `hearth up`, then sweep what is left.

use crate::{args::DownArgs, ending::Ending, postgres, up};
use anyhow::{Context, bail};
use hearth_agent::agent;
use nix::sys::signal::Signal;
use std::{process::ExitCode, time::Duration};

/// Longer than all its graces together.
const STOP: Ending = Ending { signal: Signal::SIGTERM, deadline: Duration::from_secs(240) };

/// Stops and sweeps. Nothing to do is success. What a killed Hearth left running is not thrown away unless that is asked
/// for.
pub async fn down(args: &DownArgs) -> anyhow::Result<ExitCode> {
    let place = &args.place;
    let layout = up::layout(place);
    if let Some(pid) = up::running(&place.dir) {
        println!("Stopping Hearth (process {pid}).");
        if !STOP.of(pid, || up::running(&place.dir) == Some(pid)).context("stopping Hearth")? {
            bail!("process {pid} does not stop");
        }
    }
    let living = agent::living(&layout).context("looking for capsules")?;
    if living > 0 && !args.destroy {
        bail!(
            "{living} capsules run on, left by an agent that was killed or told to leave them: `hearth up` (or `hearth \
             agent`) takes them over, `hearth down --destroy` ends them"
        );
    }
    let swept = agent::clean(&layout).await.context("sweeping")?;
    if args.destroy {
        let paused = agent::destroy_paused(&layout).await.context("removing paused capsules")?;
        if living + paused > 0 {
            println!("Ended {living} running and {paused} paused capsules.");
        }
    }
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
