//! Warm capsules: restored, handshaken, vCPUs stopped; one pool per template.
//!
//! ```text
//!   refill (background, yields) ─▶ parked (FIFO) ─▶ taken: hit      ─▶ lease or user
//!                   demand (in order, bounded) ──▶ restored: miss ─▶ lease or user
//! ```
//!
//! Invariant: a capsule that left a pool never comes back to one.

pub(crate) mod demand;
pub(crate) mod policy;
pub(crate) mod refill;
pub(crate) mod take;
pub(crate) mod warm;

use crate::host::held::Held;
use hearth_proto::id::CapsuleId;
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};
use warm::Pool;

/// Most warm capsules of one template. A quarter of what may be held in all.
pub const TARGET_MAX: usize = 512;

/// A pool at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stock {
    pub(crate) target: usize,
    pub(crate) parked: usize,
    pub(crate) refilling: usize,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

impl Stock {
    /// Adds another host's pool of the same template.
    pub(crate) fn add(&mut self, other: &Self) {
        self.target += other.target;
        self.parked += other.parked;
        self.refilling += other.refilling;
        self.hits += other.hits;
        self.misses += other.misses;
    }
}

/// The pools of one host by template. The set is fixed at start.
#[derive(Debug, Clone)]
pub(crate) struct Pools {
    pools: Arc<BTreeMap<String, Pool>>,
}

impl Pools {
    pub(crate) fn new(pools: impl IntoIterator<Item = (String, Pool)>) -> Self {
        Self { pools: Arc::new(pools.into_iter().collect()) }
    }

    /// The pool of a template, if one is kept.
    pub(crate) fn of(&self, template: &str) -> Option<&Pool> {
        self.pools.get(template)
    }

    /// Every pool, by template.
    pub(crate) fn stocks(&self) -> impl Iterator<Item = (&str, Stock)> {
        self.pools.iter().map(|(template, pool)| (template.as_str(), pool.stock()))
    }

    /// The capsule is over on its host: whichever pool has it drops it.
    pub(crate) async fn gone(&self, id: CapsuleId) {
        for pool in self.pools.values() {
            pool.gone(id).await;
        }
    }

    /// The capsule runs: when a pool still has it, somebody else claimed it, and it must not be handed out.
    pub(crate) async fn claimed_elsewhere(&self, id: CapsuleId) {
        for pool in self.pools.values() {
            pool.claimed_elsewhere(id).await;
        }
    }

    /// Every parked capsule.
    pub(crate) async fn parked(&self) -> HashSet<CapsuleId> {
        let mut parked = HashSet::new();
        for pool in self.pools.values() {
            parked.extend(pool.parked().await);
        }
        parked
    }

    /// Puts a parked capsule of an earlier pool-manager into its template's pool. False, and the capsule is destroyed,
    /// when there is no room or no such pool.
    pub(crate) async fn adopt(&self, template: &str, held: Held) -> bool {
        match self.of(template) {
            Some(pool) => pool.adopt(held).await,
            None => false,
        }
    }
}
