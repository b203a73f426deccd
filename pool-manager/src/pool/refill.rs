//! The restores that a pool has under way, and how it gets over failed ones.

use crate::{
    host::{client::AgentError, held::Held, restore::Restorer},
    metrics,
    retry::{self, Backoff},
};
use hearth_service::telemetry;
use std::time::Duration;
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), most: Duration::from_secs(10) };

/// Refills of one pool.
#[derive(Debug)]
pub(crate) struct Refills {
    template: String,
    restorer: Restorer,
    running: JoinSet<Result<Held, AgentError>>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Kind of the failure that was logged last.
    logged: Option<&'static str>,
}

impl Refills {
    pub(crate) fn new(template: String, restorer: Restorer) -> Self {
        Self { template, restorer, running: JoinSet::new(), failures: 0, retry_at: None, logged: None }
    }

    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    /// What is left of the pause after a failure.
    pub(crate) fn pause(&self, now: Instant) -> Duration {
        self.retry_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Starts one.
    pub(crate) fn start(&mut self) {
        let (restorer, template) = (self.restorer.clone(), self.template.clone());
        self.running.spawn(async move {
            let begun = Instant::now();
            let held = restorer.parked(&template).await?;
            metrics::refilled(begun.elapsed());
            Ok(held)
        });
    }

    /// The next that ends: its capsule, or `None` when it failed. Waits for ever while none is under way. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Held> {
        match self.running.join_next().await {
            Some(done) => self.done(done),
            None => std::future::pending().await,
        }
    }

    fn done(&mut self, done: Result<Result<Held, AgentError>, JoinError>) -> Option<Held> {
        match done {
            Ok(Ok(held)) => {
                if self.logged.take().is_some() {
                    tracing::info!(template = self.template, "the pool is refilled again");
                }
                self.failures = 0;
                self.retry_at = None;
                Some(held)
            }
            Ok(Err(error)) => {
                self.failed(error.kind(), &telemetry::chain(&error));
                None
            }
            Err(panic) => {
                self.failed("panic", &panic.to_string());
                None
            }
        }
    }

    /// A host without room says so again and again: each kind of failure is logged once until a refill succeeds.
    fn failed(&mut self, kind: &'static str, reason: &str) {
        metrics::refill_failed(&self.template);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(Instant::now() + BACKOFF.delay(self.failures, retry::unit()));
        if self.logged != Some(kind) {
            self.logged = Some(kind);
            tracing::warn!(template = self.template, kind, reason, "refill failed; tried again with pauses");
        }
    }
}
