//! User ids of VMMs, each used by one at a time.

use crate::cgroup::Group;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// The user ids of an agent.
#[derive(Debug)]
pub struct Uids {
    /// The pagers' user id: the one before the first.
    pub pager: u32,
    /// How many VMMs there can be.
    pub count: usize,
    free: Mutex<BTreeSet<u32>>,
}

/// A user id, given back when dropped.
#[derive(Debug)]
pub struct UidLease {
    uid: u32,
    uids: Arc<Uids>,
    group: Option<Group>,
}

impl Uids {
    /// `count` user ids from `base` on.
    pub fn new(base: u32, count: usize) -> Self {
        Self { pager: base - 1, count, free: Mutex::new((base..).take(count).collect()) }
    }

    /// A free user id; none when all are taken.
    pub fn lease(self: &Arc<Self>) -> Option<UidLease> {
        let uid = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop_first()?;
        Some(UidLease { uid, uids: self.clone(), group: None })
    }
}

impl UidLease {
    /// The user id.
    pub fn id(&self) -> u32 {
        self.uid
    }

    /// Lets go of a control group together with the user id: both are given back when the processes are gone.
    pub fn hold(&mut self, group: Group) {
        self.group = Some(group);
    }

    /// The control group that it holds.
    pub fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }
}

impl Drop for UidLease {
    fn drop(&mut self) {
        drop(self.group.take());
        self.uids.free.lock().unwrap_or_else(PoisonError::into_inner).insert(self.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_is_used_by_one_at_a_time() {
        let uids = Arc::new(Uids::new(520_000, 1));
        let only = uids.lease().unwrap();
        assert_eq!(only.id(), 520_000);
        assert!(uids.lease().is_none());
        drop(only);
        assert!(uids.lease().is_some());
    }
}
