//! The task that listens to one host: opens its stream of states, passes them on, compares, and comes back after the
//! agent was away.

use super::{HostFacts, Link, client, client::AgentError, compare::Comparison, status::HostStatus};
use crate::{
    metrics,
    retry::{self, Backoff},
    store::writer::{Job, Writer},
};
use hearth_proto::wire::agent;
use hearth_service::{shutdown::Shutdown, telemetry};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch as level,
    time::{self, Instant, MissedTickBehavior},
};
use tonic::Streaming;

/// How often a host that says nothing wrong is compared.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// An agent that restarts is back within a second or so.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), most: Duration::from_secs(2) };

/// Listens to one host.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) endpoint: Arc<str>,
    pub(crate) comparison: Comparison,
    pub(crate) link: level::Sender<Link>,
    pub(crate) writer: Writer,
    pub(crate) shutdown: Shutdown,
}

impl Watch {
    /// Runs until shutdown.
    pub(crate) async fn run(mut self) {
        let mut failures = 0;
        let stop = self.shutdown.token();
        let mut away_since = Instant::now();
        let _stopped = stop
            .run_until_cancelled(async {
                loop {
                    let error = self.connected(&mut failures).await;
                    if failures == 0 {
                        away_since = Instant::now();
                    }
                    self.away(&error, failures).await;
                    failures += 1;
                    time::sleep(BACKOFF.delay(failures, retry::unit())).await;
                    self.offline(away_since.elapsed()).await;
                }
            })
            .await;
    }

    /// One connection, from the first call to its end.
    async fn connected(&mut self, failures: &mut u32) -> AgentError {
        let (facts, mut states) = match self.open().await {
            Ok((facts, states)) => (Arc::new(facts), states),
            Err(error) => return error,
        };
        // The stream was opened before this comparison, so what changes during it is not lost.
        if let Err(error) = self.comparison.pass(&facts.id).await {
            return error;
        }
        *failures = 0;
        self.up(&facts);
        self.writer.enqueue(self.seen(&facts)).await;
        let mut tick = time::interval(COMPARE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        loop {
            tokio::select! {
                // News first: a comparison costs several calls.
                biased;
                state = states.message() => match state {
                    Ok(Some(capsule)) => {
                        if let Some(observed) = client::readable(capsule) {
                            self.comparison.owners.observe(&observed).await;
                        }
                    }
                    Ok(None) => return AgentError::Away("the agent ended its stream".to_owned()),
                    Err(status) => return AgentError::from_status("WatchHost", &status),
                },
                _ = tick.tick() => {
                    if let Err(error) = self.comparison.pass(&facts.id).await {
                        return error;
                    }
                    self.writer.enqueue(self.seen(&facts)).await;
                }
            }
        }
    }

    /// A host that stays away for long is offline from then on.
    async fn offline(&self, away: Duration) {
        if HostStatus::judge(false, away) == HostStatus::Offline {
            self.status(HostStatus::Offline).await;
        }
    }

    async fn status(&self, status: HostStatus) {
        let last = match &*self.link.borrow() {
            Link::Away { last, .. } => last.clone(),
            Link::Up { facts } => Some(Arc::clone(facts)),
        };
        if let Some(facts) = last {
            self.writer.enqueue(Job::HostStatus { id: facts.id.clone(), status }).await;
        }
    }

    async fn open(&self) -> Result<(HostFacts, Streaming<agent::Capsule>), AgentError> {
        let facts = self.comparison.agent.host().await?;
        let states = self.comparison.agent.watch().await?;
        Ok((facts, states))
    }

    fn up(&self, facts: &Arc<HostFacts>) {
        tracing::info!(
            host.id = facts.id,
            engine = facts.engine,
            accelerator = facts.accelerator,
            "host connected"
        );
        metrics::agent_up(&facts.id, true);
        self.link.send_replace(Link::Up { facts: Arc::clone(facts) });
    }

    /// Says once per outage that the agent is away.
    async fn away(&self, error: &AgentError, failures: u32) {
        let reason = telemetry::chain(error);
        let (was_up, last) = match &*self.link.borrow() {
            Link::Away { last, .. } => (false, last.clone()),
            Link::Up { facts } => (true, Some(Arc::clone(facts))),
        };
        if was_up || failures == 0 {
            tracing::warn!(reason, endpoint = %self.endpoint, "host disconnected");
        }
        if let Some(facts) = &last {
            metrics::agent_up(&facts.id, false);
        }
        self.link.send_replace(Link::Away { reason, last });
        if was_up {
            self.status(HostStatus::Unreachable).await;
        }
    }

    fn seen(&self, facts: &HostFacts) -> Job {
        Job::Host { facts: facts.clone(), endpoint: self.endpoint.as_ref().to_owned() }
    }
}
