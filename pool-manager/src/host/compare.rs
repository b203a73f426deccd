//! One comparison of what a host has with what this process has. At every connection, and again every few seconds:
//! news can be lost between two parts that are both being restarted.

use super::{
    client::{Agent, AgentError},
    observed::Observed,
    stranger::{Strangers, Verdict, judge},
};
use crate::{
    capsule::state::{self, Desired},
    owners::Owners,
    store::Store,
};
use std::{collections::HashSet, time::Duration};
use tokio::time::Instant;

/// Compares one host with the owners.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) agent: Agent,
    pub(crate) owners: Owners,
    pub(crate) store: Store,
    pub(crate) lease_max: Duration,
    pub(crate) strangers: Strangers,
}

impl Comparison {
    /// One pass over the host with this id.
    pub(crate) async fn pass(&mut self, host_id: &str) -> Result<(), AgentError> {
        let expected = self.owners.expected(host_id).await;
        let listed = self.agent.list().await?;
        let present: HashSet<_> = listed.iter().map(|observed| observed.id).collect();
        for observed in &listed {
            self.owners.observe(observed).await;
        }
        let lost = self.owners.absent(&expected, &present).await;
        if lost > 0 {
            tracing::warn!(capsules = lost, "parked capsules are gone from their host");
        }
        self.strangers(listed).await;
        self.strangers.keep(&present);
        Ok(())
    }

    async fn strangers(&mut self, listed: Vec<Observed>) {
        let now = Instant::now();
        let (mut adopted, mut destroyed) = (0_usize, 0_usize);
        for observed in listed {
            // What has ended is of no interest, and a host may remember many of them.
            if observed.state.is_over() || self.owners.explains(observed.id).await {
                continue;
            }
            let seen_for = self.strangers.seen(observed.id, now);
            match judge(&observed.state, seen_for, self.lease_max) {
                Verdict::Adopt if self.owners.adopt(&observed).await => adopted += 1,
                Verdict::Adopt => destroyed += 1,
                Verdict::Leave => destroyed += usize::from(self.end_of_row(&observed).await),
                Verdict::Destroy => destroyed += usize::from(self.end_unexplained(&observed).await),
            }
        }
        if adopted > 0 || destroyed > 0 {
            tracing::info!(adopted, destroyed, "capsules of an earlier pool-manager");
        }
    }

    /// A user's capsule that should have ended, by its row, is destroyed.
    async fn end_of_row(&self, observed: &Observed) -> bool {
        match self.store.state_of(observed.id).await {
            Ok(Some(row)) if state::desired(row) == Desired::Stopped => {
                self.owners.destroy(observed.id);
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!(capsule.id = %observed.id, %error, "row not read, capsule left alone");
                false
            }
        }
    }

    /// A capsule whose lease must be over is destroyed, unless a row explains it after all.
    async fn end_unexplained(&self, observed: &Observed) -> bool {
        match self.store.state_of(observed.id).await {
            Ok(Some(row)) if state::desired(row) == Desired::Running => false,
            Ok(_) => {
                tracing::warn!(capsule.id = %observed.id, "running capsule without user or lease destroyed");
                self.owners.destroy(observed.id);
                true
            }
            Err(error) => {
                tracing::debug!(capsule.id = %observed.id, %error, "row not read, capsule left alone");
                false
            }
        }
    }
}
