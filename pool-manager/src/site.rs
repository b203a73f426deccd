//! Hosts with all that this process keeps for each: its templates, its pool, its leases, the capsules it answers for.

use crate::{
    error::Refused,
    host::{Host, HostFacts, held::Holds},
    lease::Leases,
    pool::{Pools, demand::Demand},
    template::{Template, catalogue::Catalogue},
};
use hearth_proto::id::CapsuleId;
use std::sync::Arc;
use tokio::sync::watch as level;

/// One host. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) host: Host,
    pub(crate) catalogue: level::Receiver<Arc<Catalogue>>,
    pub(crate) pools: Pools,
    pub(crate) demand: Demand,
    pub(crate) leases: Leases,
    pub(crate) holds: Holds,
}

impl Site {
    /// Its templates as they are now.
    pub(crate) fn templates(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue.borrow())
    }

    /// The host, or that it is away.
    pub(crate) fn up(&self) -> Result<Arc<HostFacts>, Refused> {
        self.host.up().ok_or_else(|| Refused::Away("the host's agent is away".to_owned()))
    }
}

/// All hosts; the set is fixed at start. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Sites {
    all: Arc<[Site]>,
}

impl Sites {
    pub(crate) fn new(all: Vec<Site>) -> Self {
        Self { all: all.into() }
    }

    pub(crate) fn all(&self) -> &[Site] {
        &self.all
    }

    /// The host that a capsule or snapshot is on, also while its agent is away.
    pub(crate) fn of(&self, host_id: &str) -> Result<&Site, Refused> {
        let of = |site: &&Site| site.host.last_known().is_some_and(|facts| facts.id == host_id);
        self.all.iter().find(of).ok_or_else(|| Refused::Away("the capsule's host is away".to_owned()))
    }

    /// Ends a one-shot's lease, on whichever host it is. False when there is none.
    pub(crate) async fn release(&self, id: CapsuleId) -> bool {
        for site in self.all.iter() {
            if site.leases.release(id).await {
                return true;
            }
        }
        false
    }

    /// The templates of all hosts, each name and size once.
    pub(crate) fn templates(&self) -> Vec<Template> {
        let mut all: Vec<Template> = Vec::new();
        for site in self.all.iter() {
            for template in site.templates().templates() {
                let same = |other: &Template| other.name == template.name && other.size() == template.size();
                if !all.iter().any(same) {
                    all.push(template.clone());
                }
            }
        }
        all
    }

    /// Whether any host has this template, under its own name or another.
    pub(crate) fn has_template(&self, name: &str) -> bool {
        self.all.iter().any(|site| site.templates().find(name).is_some())
    }
}
