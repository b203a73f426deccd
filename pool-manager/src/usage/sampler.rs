//! The task that samples all teams with one write, and keeps the samples while the database is away.

use super::{Batch, SAMPLE_EVERY, TeamSample};
use crate::{
    capsule::{clerk::Clerk, now},
    metrics,
    store::{Store, StoreError},
};
use hearth_service::{shutdown::Shutdown, telemetry};
use std::{collections::VecDeque, time::Duration};
use tokio::time::{self, Instant, MissedTickBehavior};

/// Samples that are kept while the database is away: an hour. Then the oldest are lost.
const KEPT_MAX: usize = 360;
/// How long samples stay in their table.
const KEEP: Duration = Duration::from_secs(60 * 86_400);
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// A gap after which memory is not counted for the whole of it: this machine slept.
const SINCE_MAX: Duration = Duration::from_secs(60);

/// Samples teams.
#[derive(Debug)]
pub(crate) struct Sampler {
    pub(crate) clerk: Clerk,
    pub(crate) store: Store,
    pub(crate) shutdown: Shutdown,
}

impl Sampler {
    /// Runs until shutdown.
    pub(crate) async fn run(self) {
        let stop = self.shutdown.token();
        let _stopped = stop.run_until_cancelled(self.sample()).await;
    }

    async fn sample(&self) {
        let mut kept = VecDeque::new();
        let (mut last, mut pruned) = (Instant::now(), None);
        let mut tick = time::interval_at(last + SAMPLE_EVERY, SAMPLE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Ok(teams) = self.clerk.sample().await else { return };
            let since = std::mem::replace(&mut last, Instant::now()).elapsed().min(SINCE_MAX);
            if !teams.is_empty() {
                let teams = teams.into_iter().map(|team| TeamSample::new(team, since)).collect();
                kept.push_back(Batch { at: now(), teams });
            }
            if kept.len() > KEPT_MAX {
                kept.pop_front();
                metrics::samples_lost();
            }
            self.write(&mut kept).await;
            if pruned.is_none_or(|at: Instant| at.elapsed() >= PRUNE_EVERY) && self.prune().await {
                pruned = Some(Instant::now());
            }
        }
    }

    /// Writes what is kept, the oldest first.
    async fn write(&self, kept: &mut VecDeque<Batch>) {
        while let Some(batch) = kept.front() {
            match self.store.sampled(batch).await {
                Ok(()) => {}
                Err(StoreError::Away(reason)) => {
                    tracing::debug!(reason, kept = kept.len(), "samples wait for the database");
                    return;
                }
                Err(error) => {
                    tracing::error!(error = telemetry::chain(&error), "a sample was refused, it is lost");
                    metrics::samples_lost();
                }
            }
            kept.pop_front();
        }
    }

    async fn prune(&self) -> bool {
        match self.store.prune_samples(now() - KEEP).await {
            Ok(0) => true,
            Ok(samples) => {
                tracing::info!(samples, "old samples removed");
                true
            }
            Err(error) => {
                tracing::debug!(%error, "old samples not removed yet");
                false
            }
        }
    }
}
