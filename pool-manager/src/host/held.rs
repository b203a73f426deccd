//! Ownership of capsules that are not users': one value each, destroyed when the value is dropped.
//!
//! ```text
//!   hold(id) ─▶ Restore on the agent ─▶ pool ─▶ one-shot's lease ─▶ dropped: destroyed
//!                                         └───▶ user's capsule, row written ─▶ given_away
//! ```
//!
//! Dropping cannot wait, so it hands the id to the reaper. During shutdown it does nothing: parked capsules stay for
//! the next pool-manager to adopt, and the agent ends what must end with the host.

use hearth_proto::id::CapsuleId;
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Most capsules held at once, those being destroyed included. Also the length of the reaper's queue, which therefore
/// cannot be full.
pub(crate) const HELD_MAX: usize = 2048;

/// The ids this process answers for. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Holds {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ids: Mutex<HashSet<CapsuleId>>,
    undo: mpsc::Sender<CapsuleId>,
    stop: CancellationToken,
}

impl Shared {
    fn ids(&self) -> MutexGuard<'_, HashSet<CapsuleId>> {
        // The set is whole between any two of its operations, so a panic elsewhere does not spoil it.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holds {
    /// No capsules yet, and the queue of those to destroy, for the reaper. From `stop` on nothing more is destroyed.
    pub(crate) fn new(stop: CancellationToken) -> (Self, mpsc::Receiver<CapsuleId>) {
        let (undo, queue) = mpsc::channel(HELD_MAX);
        (Self { shared: Arc::new(Shared { ids: Mutex::default(), undo, stop }) }, queue)
    }

    /// Takes responsibility for `id`. `None` when this process has it already, or holds too many.
    pub(crate) fn hold(&self, id: CapsuleId) -> Option<Held> {
        let mut ids = self.shared.ids();
        if ids.len() >= HELD_MAX || !ids.insert(id) {
            return None;
        }
        Some(Held { id, holds: self.clone(), armed: true })
    }

    /// Whether this process answers for `id`, also while it is being destroyed.
    pub(crate) fn contains(&self, id: CapsuleId) -> bool {
        self.shared.ids().contains(&id)
    }

    /// The reaper is done with `id`.
    pub(crate) fn forget(&self, id: CapsuleId) {
        self.shared.ids().remove(&id);
    }
}

/// One capsule that this process answers for. Dropping it destroys the capsule on its host, in the background.
#[derive(Debug)]
pub(crate) struct Held {
    id: CapsuleId,
    holds: Holds,
    armed: bool,
}

impl Held {
    pub(crate) fn id(&self) -> CapsuleId {
        self.id
    }

    /// Ends the responsibility without destroying: the capsule is somebody else's from here on.
    pub(crate) fn given_away(mut self) {
        self.armed = false;
        self.holds.forget(self.id);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let shared = &self.holds.shared;
        if !self.armed || shared.stop.is_cancelled() {
            return;
        }
        if let Err(error) = shared.undo.try_send(self.id) {
            // Only when the reaper is gone. The host's capsules are compared with ours again and again.
            tracing::error!(capsule.id = %self.id, %error, "capsule left behind");
            self.holds.forget(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_held_capsule_queues_it_once_and_keeps_it_known() {
        let (holds, mut queue) = Holds::new(CancellationToken::new());
        let id = CapsuleId::new();
        let held = holds.hold(id).unwrap();
        assert!(holds.hold(id).is_none(), "one owner each");
        drop(held);
        assert!(holds.contains(id), "until the reaper is done");
        assert_eq!(queue.try_recv(), Ok(id));
        assert!(queue.try_recv().is_err());
        holds.forget(id);
        assert!(!holds.contains(id));
    }

    #[test]
    fn a_capsule_given_away_is_not_destroyed() {
        let (holds, mut queue) = Holds::new(CancellationToken::new());
        let id = CapsuleId::new();
        holds.hold(id).unwrap().given_away();
        assert!(!holds.contains(id));
        assert!(queue.try_recv().is_err());
    }

    #[test]
    fn shutdown_leaves_capsules_for_the_next_start() {
        let stop = CancellationToken::new();
        let (holds, mut queue) = Holds::new(stop.clone());
        let held = holds.hold(CapsuleId::new()).unwrap();
        stop.cancel();
        drop(held);
        assert!(queue.try_recv().is_err());
    }

    #[test]
    fn the_number_of_held_capsules_is_bounded() {
        let (holds, _queue) = Holds::new(CancellationToken::new());
        let all: Vec<Held> = (0..HELD_MAX).map(|_| holds.hold(CapsuleId::new()).unwrap()).collect();
        assert!(holds.hold(CapsuleId::new()).is_none());
        drop(all);
    }
}
