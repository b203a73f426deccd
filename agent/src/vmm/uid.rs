//! User ids of VMMs, each used by one at a time.

use crate::cgroup::Group;
use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// The user ids of an agent.
#[derive(Debug)]
pub struct Uids {
    /// The pagers' user id: the one before the first.
    pub pager: u32,
    /// How many VMMs there can be.
    pub count: usize,
    range: Range<u32>,
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
        let range = base..base.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        Self { pager: base - 1, count, free: Mutex::new(range.clone().collect()), range }
    }

    /// This one user id, which a living VMM has; none when another was given it. It may lie outside the range, when that
    /// was another in the life of an earlier agent: then it is not given to others afterwards.
    pub fn claim(self: &Arc<Self>, uid: u32) -> Option<UidLease> {
        let was_free = self.free.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
        let is_ours = self.range.contains(&uid);
        (was_free || !is_ours).then(|| UidLease { uid, uids: self.clone(), group: None })
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
        if self.uids.range.contains(&self.uid) {
            self.uids.free.lock().unwrap_or_else(PoisonError::into_inner).insert(self.uid);
        }
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

    #[test]
    fn a_living_vmms_user_id_is_claimed_and_no_other_gets_it() {
        let uids = Arc::new(Uids::new(520_000, 2));
        let adopted = uids.claim(520_000).unwrap();
        assert!(uids.claim(520_000).is_none(), "one owner each");
        assert_eq!(uids.lease().unwrap().id(), 520_001);
        let foreign = uids.claim(7).unwrap();
        drop((adopted, foreign));
        let rest = [uids.lease().unwrap(), uids.lease().unwrap()];
        assert!(rest.iter().all(|lease| lease.id() >= 520_000) && uids.lease().is_none());
    }
}
