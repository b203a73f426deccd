//! Which lease ends when. Pure: time is an argument.

use hearth_proto::id::CapsuleId;
use std::collections::{BTreeSet, HashMap, HashSet};
use tokio::time::Instant;

/// Leases by capsule, ordered by their end. `T` is what a lease holds.
#[derive(Debug)]
pub(crate) struct Table<T> {
    leases: HashMap<CapsuleId, (Instant, T)>,
    ends: BTreeSet<(Instant, CapsuleId)>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { leases: HashMap::new(), ends: BTreeSet::new() }
    }
}

impl<T> Table<T> {
    /// A lease until `end`. A second one for the same capsule replaces the first, whose content is returned.
    pub(crate) fn grant(&mut self, id: CapsuleId, end: Instant, content: T) -> Option<T> {
        let before = self.leases.insert(id, (end, content));
        let before = before.map(|(end, content)| {
            self.ends.remove(&(end, id));
            content
        });
        self.ends.insert((end, id));
        before
    }

    /// Ends a lease before its time.
    pub(crate) fn remove(&mut self, id: CapsuleId) -> Option<T> {
        let (end, content) = self.leases.remove(&id)?;
        self.ends.remove(&(end, id));
        Some(content)
    }

    /// Ends all leases whose time is over, the earliest first.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        while let Some((end, id)) = self.ends.first().copied() {
            if end > now {
                break;
            }
            expired.extend(self.remove(id));
        }
        expired
    }

    /// When the next lease ends.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn ids(&self) -> HashSet<CapsuleId> {
        self.leases.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;
    use uuid::Uuid;

    #[derive(Debug, Clone)]
    enum Step {
        Grant { capsule: u8, lease_ms: u64 },
        Release { capsule: u8 },
        Pass { ms: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..8, 0u64..100).prop_map(|(capsule, lease_ms)| Step::Grant { capsule, lease_ms }),
            (0u8..8).prop_map(|capsule| Step::Release { capsule }),
            (0u64..60).prop_map(|ms| Step::Pass { ms }),
        ]
    }

    fn id(capsule: u8) -> CapsuleId {
        CapsuleId::from_uuid(Uuid::from_u128(u128::from(capsule)))
    }

    proptest! {
        #[test]
        fn every_grant_ends_exactly_once_and_never_early(steps in prop::collection::vec(step(), 0..60)) {
            let mut now = Instant::now();
            let mut table = Table::default();
            let (mut granted, mut ended) = (0_usize, 0_usize);
            for step in steps {
                match step {
                    Step::Grant { capsule, lease_ms } => {
                        let end = now + Duration::from_millis(lease_ms);
                        granted += 1;
                        ended += usize::from(table.grant(id(capsule), end, end).is_some());
                    }
                    Step::Release { capsule } => ended += usize::from(table.remove(id(capsule)).is_some()),
                    Step::Pass { ms } => {
                        now += Duration::from_millis(ms);
                        for end in table.expire(now) {
                            prop_assert!(end <= now);
                            ended += 1;
                        }
                        prop_assert!(table.next().is_none_or(|next| next > now));
                    }
                }
                prop_assert_eq!(granted, ended + table.len());
                prop_assert_eq!(table.ends.len(), table.leases.len());
            }
        }
    }

    #[test]
    fn the_earliest_end_comes_first() {
        let (now, mut table) = (Instant::now(), Table::default());
        for ms in [30, 10, 20] {
            table.grant(id(ms), now + Duration::from_millis(u64::from(ms)), ms);
        }
        assert_eq!(table.next(), Some(now + Duration::from_millis(10)));
        assert_eq!(table.expire(now + Duration::from_millis(25)), [10, 20]);
        assert_eq!(table.ids(), HashSet::from([id(30)]));
    }
}
