//! The task of a capsule that an earlier agent started.

use super::{
    handle::{Facts, Handle},
    ledger::{LifeRecord, Phase},
    runner::{End, Life, Runner, Turn},
    settings::Settings,
    state::{Happening, State},
};
use crate::agent::Parts;
use hearth_proto::id::CapsuleId;
use std::{sync::Arc, time::Duration};
use tokio::time::{self, Instant};
use tracing::Instrument;

/// A guest may still be in the middle of what the earlier agent asked: freezing takes it up to five seconds.
const SETTLE_DEADLINE: Duration = Duration::from_secs(30);
const SETTLE_PAUSE: Duration = Duration::from_millis(50);

/// (pure) The state that a capsule is taken over in. One whose capture was under way, or whose vCPUs stand still though it
/// should run, comes back in a moment; until then uses of it wait.
fn state(phase: Phase, running: bool) -> State {
    match (phase, running) {
        (Phase::Parked, false) => State::Parked,
        // It was claimed.
        (Phase::Parked | Phase::Running, true) => State::Running,
        (Phase::Starting | Phase::Running | Phase::Capturing | Phase::Stopping | Phase::Failed, _) => {
            State::Snapshotting
        }
    }
}

/// Starts the task of a capsule that goes on. `running`: its vCPUs run now.
pub(crate) fn take_over(
    parts: &Arc<Parts>,
    id: CapsuleId,
    record: LifeRecord,
    life: Life,
    running: bool,
) -> Handle {
    let state = state(record.phase, running);
    let span = tracing::info_span!("capsule", capsule.id = %id);
    let (runner, handle) = Runner::new(parts, record.facts(id), state.clone(), record.settings);
    parts.shutdown.tasks().spawn(runner.go_over(life, state == State::Snapshotting).instrument(span));
    handle
}

/// A capsule that is told to have failed.
pub(crate) fn failed(parts: &Arc<Parts>, facts: Facts, reason: String) -> Handle {
    tracing::warn!(capsule.id = %facts.id, reason, "capsule failed");
    metrics::counter!("hearth_agent_capsule_failures_total").increment(1);
    Runner::new(parts, facts, State::Failed(reason), Settings::default()).1
}

impl Runner {
    async fn go_over(mut self, life: Life, half_done: bool) {
        if half_done && let Err(reason) = self.settle(&life).await {
            drop(life);
            return self.end(End::Died(format!("its capture could not be undone: {reason}"))).await;
        }
        self.guest.send_replace(Some(life.guest.clone()));
        if half_done {
            self.happened(Happening::Runs);
        }
        let end = self.lives(Turn::Lives(life)).await;
        self.end(end).await;
    }

    /// Undoes what a capture had begun: vCPUs run, the guest is active and thawed.
    async fn settle(&mut self, life: &Life) -> Result<(), String> {
        let start = Instant::now();
        loop {
            // What the earlier agent asked may be answered after our first activation, so the guest is asked again.
            let settled = match self.go_on(life).await {
                Ok(()) => life.guest.health().await.map(drop).map_err(|error| error.to_string()),
                Err(reason) => Err(reason),
            };
            match settled {
                Ok(()) => return Ok(()),
                Err(reason) if !life.vmm.is_alive() || SETTLE_DEADLINE < start.elapsed() => {
                    return Err(reason);
                }
                Err(reason) => tracing::debug!(reason, "the guest is not settled yet"),
            }
            time::sleep(SETTLE_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capsule_is_taken_over_as_its_user_left_it() {
        assert_eq!(state(Phase::Parked, false), State::Parked);
        assert_eq!(state(Phase::Parked, true), State::Running, "claimed");
        assert_eq!(state(Phase::Running, true), State::Running);
        for (phase, running) in [(Phase::Capturing, true), (Phase::Capturing, false), (Phase::Running, false)]
        {
            assert_eq!(state(phase, running), State::Snapshotting, "uses wait until it is undone");
        }
    }
}
