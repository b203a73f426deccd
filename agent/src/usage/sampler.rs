//! The task that samples all capsules, and what it says of the host as a whole.

use super::history::TIERS;
use crate::{
    agent::Parts,
    capsule::{handle::Handle, state::State},
    template::build::now_ms,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{self, MissedTickBehavior};

/// One sample of each capsule per point of the finest resolution.
const PERIOD: Duration = Duration::from_millis(TIERS[0].interval_ms);
/// Histories are written to disk as often as a day's series gets a point.
const WRITE_PERIOD: Duration = Duration::from_millis(TIERS[2].interval_ms);

/// Starts the task. It ends at shutdown.
pub fn start(parts: &Arc<Parts>) {
    let (parts, stop) = (parts.clone(), parts.shutdown.token());
    let tasks = parts.shutdown.tasks().clone();
    tasks.spawn(async move {
        let mut tick = time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut written = Instant::now();
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let write = WRITE_PERIOD <= written.elapsed();
            if write {
                written = Instant::now();
            }
            let owned = parts.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || pass(&owned, write)).await {
                tracing::error!(%error, "sampling capsules");
            }
        }
    });
}

/// Samples each capsule that has not ended.
fn pass(parts: &Parts, write: bool) {
    let start = Instant::now();
    let capsules = parts.registry.list();
    let (mut private, mut unresponsive) = (0, 0_u32);
    for capsule in capsules.iter().filter(|capsule| !capsule.state().is_end()) {
        private += capsule.meter.sample(now_ms()).private_bytes;
        unresponsive += u32::from(capsule.is_unresponsive());
        if write {
            parts.usage.write(capsule.facts.id, &capsule.meter.history());
        }
    }
    by_state(&capsules);
    metrics::gauge!("hearth_agent_private_bytes").set(private as f64);
    metrics::gauge!("hearth_agent_unresponsive_capsules").set(unresponsive);
    if let Ok((used, all)) = parts.images.usage() {
        metrics::gauge!("hearth_agent_image_bytes", "kind" => "used").set(used as f64);
        metrics::gauge!("hearth_agent_image_bytes", "kind" => "budget").set(all as f64);
    }
    metrics::histogram!("hearth_agent_usage_pass_seconds").record(start.elapsed().as_secs_f64());
}

fn by_state(capsules: &[Handle]) {
    // Failed ones by their word only: reasons are not labels.
    let states = [
        State::Starting,
        State::Parked,
        State::Running,
        State::Pausing,
        State::Paused,
        State::Resuming,
        State::Snapshotting,
        State::Stopping,
    ];
    for state in states {
        let count = capsules.iter().filter(|capsule| capsule.state() == state).count();
        metrics::gauge!("hearth_agent_capsules", "state" => state.to_string()).set(count as f64);
    }
}
