//! The capsules of this host, by id.

use super::{handle::Handle, room::Room};
use crate::admission::{Policy, Refusal, Tenant, admit};
use hearth_proto::{id::CapsuleId, wire::agent as wire};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};
use tokio::sync::broadcast;

/// Ended capsules that are remembered, so that a late asker learns why.
const ENDED_KEPT: usize = 256;
/// Changes kept for a slow watcher; one that falls behind starts again from the full list.
const CHANGES_KEPT: usize = 1024;

/// Handles by id, and the stream of changes.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    changes: broadcast::Sender<wire::Capsule>,
    policy: Policy,
}

#[derive(Debug, Default)]
struct Inner {
    capsules: HashMap<CapsuleId, Handle>,
    ended: VecDeque<CapsuleId>,
}

impl Inner {
    /// What lives, or is about to, but `id`. Paused ones cost nothing; one that is being resumed does.
    fn tenants(&self, id: CapsuleId) -> Vec<Tenant> {
        let living = self.capsules.values().filter(|one| one.facts.id != id && one.state().is_living());
        living
            .map(|handle| Tenant {
                vcpus: handle.facts.vcpus,
                memory_mb: handle.facts.memory_mb,
                private_mb: handle.meter.newest().private_bytes >> 20,
            })
            .collect()
    }
}

/// Why a capsule is not registered.
#[derive(Debug)]
pub enum Refused {
    /// One of this id is there already.
    Exists(Box<Handle>),
    /// The host has no room for it.
    Full(Refusal),
}

impl Registry {
    /// An empty registry, for what fits by this policy.
    pub fn new(policy: Policy) -> Self {
        Self { inner: Mutex::default(), changes: broadcast::channel(CHANGES_KEPT).0, policy }
    }

    /// What an operator set.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a capsule that is registered, and is about to have a VMM again, fits beside the others.
    pub fn fits(&self, id: CapsuleId, room: &Room) -> Result<(), Refusal> {
        let tenants = self.lock().tenants(id);
        self.admit(&tenants, room)
    }

    fn admit(&self, tenants: &[Tenant], room: &Room) -> Result<(), Refusal> {
        admit(&self.policy, &room.host, tenants, &room.wanted).inspect_err(|refusal| {
            metrics::counter!("hearth_agent_refusals_total", "resource" => refusal.resource.as_str())
                .increment(1);
        })
    }

    /// Registers a capsule that `make` starts, unless its id is taken or it does not fit into the room; one that is on
    /// disk needs none.
    pub fn insert(
        &self,
        id: CapsuleId,
        room: Option<&Room>,
        make: impl FnOnce() -> Handle,
    ) -> Result<Handle, Refused> {
        let mut inner = self.lock();
        if let Some(handle) = inner.capsules.get(&id) {
            return Err(Refused::Exists(Box::new(handle.clone())));
        }
        if let Some(room) = room {
            // Under the lock: what two admit at once must not be the same memory.
            self.admit(&inner.tenants(id), room).map_err(Refused::Full)?;
        }
        let handle = make();
        inner.capsules.insert(id, handle.clone());
        Ok(handle)
    }

    /// Registers a capsule of an earlier agent, whatever the limit says now. False when its id is taken.
    pub fn adopt(&self, handle: Handle) -> bool {
        let mut inner = self.lock();
        let is_new = !inner.capsules.contains_key(&handle.facts.id);
        if is_new {
            inner.capsules.insert(handle.facts.id, handle);
        }
        is_new
    }

    /// The capsule of this id, ended ones included for a while.
    pub fn get(&self, id: CapsuleId) -> Option<Handle> {
        self.lock().capsules.get(&id).cloned()
    }

    /// All, ended ones included for a while.
    pub fn list(&self) -> Vec<Handle> {
        self.lock().capsules.values().cloned().collect()
    }

    /// Tells the watchers that a capsule changed; an ended one is forgotten after a while.
    pub fn changed(&self, handle: &Handle) {
        if handle.state().is_end() {
            let mut inner = self.lock();
            inner.ended.push_back(handle.facts.id);
            if ENDED_KEPT < inner.ended.len()
                && let Some(oldest) = inner.ended.pop_front()
            {
                inner.capsules.remove(&oldest);
            }
        }
        // Nobody watching is normal.
        let _ = self.changes.send(handle.wire(None));
    }

    /// The full list and the changes after it, without a gap.
    pub fn watch(&self) -> (Vec<wire::Capsule>, broadcast::Receiver<wire::Capsule>) {
        let changes = self.changes.subscribe();
        (self.list().iter().map(|handle| handle.wire(None)).collect(), changes)
    }
}
