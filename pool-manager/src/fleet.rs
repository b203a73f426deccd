//! The hosts there are and were: what is known live, over their rows.

use crate::{
    capsule::{clerk::Clerk, now},
    error::Refused,
    host::{HostFacts, status::HostStatus},
    site::Sites,
    store::{Store, StoreError, fleet::HostRow},
};
use std::{collections::HashMap, time::Duration};
use time::OffsetDateTime;

/// A host as callers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostView {
    pub(crate) id: String,
    pub(crate) status: String,
    pub(crate) engine: String,
    pub(crate) accelerator: String,
    pub(crate) cpus: u32,
    pub(crate) memory_mb: u64,
    /// None: not known while the database is away.
    pub(crate) registered: Option<OffsetDateTime>,
    pub(crate) last_seen: Option<OffsetDateTime>,
    /// Users' capsules on it that have not ended.
    pub(crate) capsules: u32,
}

/// Reads hosts.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    pub(crate) sites: Sites,
    pub(crate) store: Store,
    pub(crate) clerk: Clerk,
}

impl Fleet {
    /// Every host, the oldest first. While the database is away, those that are connected or were.
    pub(crate) async fn list(&self) -> Result<Vec<HostView>, Refused> {
        let counts = self.clerk.counts().await?;
        let rows = match self.store.hosts().await {
            Ok(rows) => rows,
            Err(StoreError::Away(error)) => {
                tracing::warn!(%error, "the database is away, hosts are listed from memory");
                Vec::new()
            }
            Err(error) => return Err(error.refused()),
        };
        let mut views: Vec<HostView> = rows.into_iter().map(|row| of_row(row, &counts)).collect();
        for site in self.sites.all() {
            let Some(facts) = site.host.last_known() else { continue };
            let connected = site.host.up().is_some();
            match views.iter_mut().find(|view| view.id == facts.id) {
                Some(view) if connected => view.status = HostStatus::Online.as_str().to_owned(),
                Some(_) => {}
                None => views.push(of_facts(&facts, connected, &counts)),
            }
        }
        Ok(views)
    }
}

/// A host that is not connected now; how bad that is, its last heartbeat says.
fn of_row(row: HostRow, counts: &HashMap<String, u32>) -> HostView {
    let silent = Duration::try_from(now() - row.last_seen).unwrap_or_default();
    HostView {
        status: HostStatus::judge(false, silent).as_str().to_owned(),
        capsules: counts.get(&row.id).copied().unwrap_or_default(),
        id: row.id,
        engine: row.engine,
        accelerator: row.accelerator,
        cpus: u32::try_from(row.cpus).unwrap_or_default(),
        memory_mb: u64::try_from(row.memory_mb).unwrap_or_default(),
        registered: Some(row.registered_at),
        last_seen: Some(row.last_seen),
    }
}

fn of_facts(facts: &HostFacts, connected: bool, counts: &HashMap<String, u32>) -> HostView {
    HostView {
        status: HostStatus::judge(connected, Duration::ZERO).as_str().to_owned(),
        capsules: counts.get(&facts.id).copied().unwrap_or_default(),
        id: facts.id.clone(),
        engine: facts.engine.clone(),
        accelerator: facts.accelerator.clone(),
        cpus: facts.cpus,
        memory_mb: facts.memory_mb,
        registered: None,
        last_seen: None,
    }
}
