//! What becomes of capsules when their agent stops.

use super::Parts;
use crate::{
    capsule::{handle::Handle, state::State},
    config::OnStop,
    snapshot::generation::UNNAMED,
};
use futures::StreamExt;
use hearth_proto::id::CapsuleId;
use std::{collections::HashSet, fs, io, path::Path, time::Duration};
use tokio::time::{Instant, timeout_at};

/// Capsules that are paused at once: each compresses and writes what it wrote.
const PAUSES_AT_ONCE: usize = 4;
/// All pauses together: less than a service manager's patience (90 s) and `hearth down`'s.
const PAUSES_DEADLINE: Duration = Duration::from_secs(75);
/// Between two lines about the progress.
const PROGRESS_EVERY: usize = 10;

/// Whether a VMM is left in their folder, for the next agent.
pub(super) fn is_something_left(vmms: &Path) -> bool {
    fs::read_dir(vmms).is_ok_and(|mut entries| entries.next().is_some())
}

/// Removes what says why capsules could not be kept.
pub(super) fn forget_failed(failed: &Path) -> io::Result<()> {
    match fs::remove_dir_all(failed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes the records in `paused`, then the generations in `snapshots` that only they can have named.
pub(super) fn destroy_paused(paused: &Path, snapshots: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(paused)? {
        fs::remove_file(entry?.path())?;
        removed += 1;
    }
    let generations = match fs::read_dir(snapshots) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        entries => entries?,
    };
    for entry in generations {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNNAMED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(removed)
}

/// Leaves, pauses or destroys all capsules. `users`: those that are paused when they are to be; all that run if unknown.
pub(super) async fn capsules(parts: &Parts, on_stop: OnStop, users: Option<&HashSet<CapsuleId>>) {
    let capsules = parts.registry.list();
    match on_stop {
        OnStop::Leave => {
            let living = capsules.iter().filter(|capsule| capsule.state().is_living()).count();
            tracing::info!(capsules = living, "the agent stops; its capsules are the next agent's");
            futures::future::join_all(capsules.iter().map(Handle::let_go)).await;
        }
        OnStop::Pause => {
            let (keep, end): (Vec<_>, Vec<_>) =
                capsules.into_iter().partition(|capsule| is_users(capsule, users));
            // What ends makes room for what is written.
            futures::future::join_all(end.iter().map(Handle::leave)).await;
            pause_all(keep).await;
        }
        OnStop::Destroy => {
            futures::future::join_all(capsules.iter().map(Handle::leave)).await;
        }
    }
}

fn is_users(capsule: &Handle, users: Option<&HashSet<CapsuleId>>) -> bool {
    let runs = match capsule.state() {
        State::Running | State::Pausing | State::Resuming | State::Snapshotting => true,
        State::Starting
        | State::Parked
        | State::Paused
        | State::Stopping
        | State::Stopped
        | State::Failed(_) => false,
    };
    runs && users.is_none_or(|users| users.contains(&capsule.facts.id))
}

async fn pause_all(capsules: Vec<Handle>) {
    let total = capsules.len();
    if total == 0 {
        return;
    }
    tracing::info!(capsules = total, "the agent stops and pauses users' capsules");
    let (start, deadline) = (Instant::now(), Instant::now() + PAUSES_DEADLINE);
    let mut pauses = futures::stream::iter(capsules.into_iter().map(|capsule| pause(capsule, deadline)))
        .buffer_unordered(PAUSES_AT_ONCE);
    let (mut done, mut failed) = (0, 0);
    while let Some(paused) = pauses.next().await {
        done += 1;
        failed += usize::from(!paused);
        if done == total || done % PROGRESS_EVERY == 0 {
            tracing::info!(done, failed, of = total, seconds = start.elapsed().as_secs(), "capsules paused");
        }
    }
}

/// Pauses one. One that cannot be paused ends, and its reason is kept for whoever asks the next agent.
async fn pause(capsule: Handle, deadline: Instant) -> bool {
    let reason = match timeout_at(deadline, capsule.suspend()).await {
        Ok(Ok(_)) => None,
        // It was paused, or ended, by its user.
        Ok(Err(_)) if !capsule.state().is_living() => None,
        Ok(Err(error)) => Some(hearth_service::telemetry::chain(&error)),
        Err(_) => Some(format!("it took longer than {} s", PAUSES_DEADLINE.as_secs())),
    };
    if let Some(reason) = &reason {
        tracing::error!(capsule.id = %capsule.facts.id, reason, "a capsule could not be paused and is lost");
        capsule.give_up(format!("it could not be paused when its host stopped: {reason}")).await;
    } else {
        // Its task ends; it stays on disk.
        capsule.leave().await;
    }
    reason.is_none()
}
