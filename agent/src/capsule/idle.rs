//! The part of a capsule's task that acts by itself: pauses or ends an idle one, ends a lifetime, and notices a guest that does
//! not answer.

use super::{
    health::{Change, Health},
    runner::{End, Life, Runner, Turn},
    state::{Decision, Request, State},
    timeouts::{Failures, Timeouts, Use, Verdict},
};
use crate::{
    error::AgentError,
    guest::{GuestError, Identity},
};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio::{sync::oneshot, time};

/// A guest that has just answered is given this long to go on.
const GO_ON_DEADLINE: Duration = Duration::from_secs(5);

/// What is counted of the present life.
#[derive(Debug)]
pub(super) struct Clock {
    /// When it began to run for its user, or its lifetime began anew.
    begun: Instant,
    failures: Failures,
    /// The guest did not answer when it was to go on: it is told who it is as soon as it does.
    pub(super) owes_identity: bool,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { begun: Instant::now(), failures: Failures::default(), owes_identity: false }
    }
}

impl Runner {
    /// A life begins, or its user's part of it.
    pub(super) fn begin_clock(&mut self) {
        self.clock = Clock::start();
        self.handle.activities.touch();
    }

    /// The timeouts as they are kept when this life ends.
    pub(super) fn timeouts_kept(&self) -> Timeouts {
        self.settings.timeouts.after(self.clock.begun.elapsed())
    }

    /// Changes timeouts; the lifetime begins anew.
    pub(super) fn set_timeouts(
        &mut self,
        change: impl FnOnce(Timeouts) -> Timeouts,
    ) -> Result<Timeouts, AgentError> {
        // Those who may use it may also say for how long.
        self.state.borrow().decide(Request::Use)?;
        self.settings.timeouts = change(self.settings.timeouts).renewed();
        let owes_identity = self.clock.owes_identity;
        self.begin_clock();
        self.clock.owes_identity = owes_identity;
        Ok(self.settings.timeouts)
    }

    fn verdict(&self) -> Verdict {
        if *self.state.borrow() != State::Running {
            return Verdict::Wait(None);
        }
        let activities = &self.handle.activities;
        let used = Use {
            busy: activities.is_busy(),
            last: activities.last().saturating_duration_since(self.clock.begun),
        };
        self.settings.timeouts.decide(self.clock.begun.elapsed(), used, self.clock.failures)
    }

    /// Until something is due. Computed anew after each event of the task.
    pub(super) fn due(&self) -> impl Future<Output = ()> + use<> {
        let wait = match self.verdict() {
            Verdict::Wait(wait) => wait,
            Verdict::Pause(_) | Verdict::Destroy(_) => Some(Duration::ZERO),
        };
        async move {
            match wait {
                Some(wait) => time::sleep(wait).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Does what is due. `None`: this life goes on.
    pub(super) async fn expire(&mut self, life: &Life) -> Option<Turn> {
        let reason = match self.verdict() {
            Verdict::Wait(_) => return None,
            Verdict::Destroy("idle") if self.handle.activities.is_busy() => return None,
            Verdict::Destroy(reason) => {
                tracing::info!(reason, "a capsule is destroyed: its time is over");
                count(reason, "destroyed");
                self.enter(State::Stopping);
                return Some(Turn::Ended(End::Destroyed(Vec::new())));
            }
            Verdict::Pause(reason) => reason,
        };
        let Ok(Decision::Move(next)) = self.state.borrow().decide(Request::Pause) else { return None };
        self.enter(next);
        if reason == "idle" && self.handle.activities.is_busy() {
            // A use began at the same moment and may have seen a running capsule: it goes first.
            self.happened(super::state::Happening::Runs);
            return None;
        }
        tracing::info!(reason, "pausing a capsule");
        // An idle one is there again as soon as it is used; one whose time is over only when it is resumed.
        self.handle.wakes.store(reason == "idle", Ordering::SeqCst);
        let (reply, answer) = oneshot::channel();
        let turn = self.pause_now(life, reply).await;
        match answer.await {
            Ok(Ok(_)) => count(reason, "paused"),
            Ok(Err(_)) | Err(_) => {
                count(reason, "failed");
                self.clock.failures = self.clock.failures.another(self.clock.begun.elapsed());
            }
        }
        turn
    }

    /// The guest answered, or did not in time.
    pub(super) async fn heard(&mut self, life: &Life, health: &mut Health, answer: Result<(), GuestError>) {
        let mut is_well = answer.is_ok();
        if self.clock.owes_identity && matches!(answer, Ok(()) | Err(GuestError::Refused(_))) {
            // A refusal is an answer: what it was asked while it did not answer has since been done, or half of it.
            is_well = self.go_on_late(life).await;
        } else if let Err(error) = &answer {
            tracing::warn!(%error, "the guest does not answer");
        }
        if !is_well {
            metrics::counter!("hearth_agent_health_failures_total").increment(1);
        }
        match health.count(is_well) {
            Change::None => {}
            Change::Lost => self.set_unresponsive(true),
            Change::Found => self.set_unresponsive(false),
        }
    }

    /// Tells a guest that answers again after a failed capture who it is. Whether that was done.
    async fn go_on_late(&mut self, life: &Life) -> bool {
        let identity =
            Identity { hostname: self.handle.facts.id.to_string(), env: self.settings.env.clone() };
        let error = match time::timeout(GO_ON_DEADLINE, life.guest.activate(identity)).await {
            Ok(Ok(_)) => {
                self.clock.owes_identity = false;
                return true;
            }
            Ok(Err(error)) => error,
            Err(_) => GuestError::Deadline("Activate"),
        };
        tracing::warn!(%error, "the guest does not go on after a failed capture");
        false
    }

    pub(super) fn set_unresponsive(&mut self, unresponsive: bool) {
        if self.handle.unresponsive.swap(unresponsive, std::sync::atomic::Ordering::Relaxed) != unresponsive {
            self.parts.registry.changed(&self.handle);
        }
    }
}

fn count(reason: &'static str, result: &'static str) {
    metrics::counter!("hearth_agent_timeouts_total", "reason" => reason, "result" => result).increment(1);
}
