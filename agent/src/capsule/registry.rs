//! The capsules of this host, by id.

use super::handle::Handle;
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
    limit: usize,
}

#[derive(Debug, Default)]
struct Inner {
    capsules: HashMap<CapsuleId, Handle>,
    ended: VecDeque<CapsuleId>,
}

impl Inner {
    fn living(&self) -> usize {
        self.capsules.values().filter(|handle| handle.state().is_living()).count()
    }
}

/// Why a capsule is not registered.
#[derive(Debug)]
pub enum Refused {
    /// One of this id is there already.
    Exists(Box<Handle>),
    /// The host's limit is reached.
    Full(usize),
}

impl Registry {
    /// An empty registry for at most `limit` living capsules.
    pub fn new(limit: usize) -> Self {
        Self { inner: Mutex::default(), changes: broadcast::channel(CHANGES_KEPT).0, limit }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no more capsules live than may. Paused ones cost nothing and are not counted; one that is being resumed
    /// is.
    pub fn is_within_limit(&self) -> bool {
        self.lock().living() <= self.limit
    }

    /// Registers a capsule that `make` starts, unless its id is taken or the host is full.
    pub fn insert(&self, id: CapsuleId, make: impl FnOnce() -> Handle) -> Result<Handle, Refused> {
        let mut inner = self.lock();
        if let Some(handle) = inner.capsules.get(&id) {
            return Err(Refused::Exists(Box::new(handle.clone())));
        }
        if self.limit <= inner.living() {
            return Err(Refused::Full(self.limit));
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
