//! What a team may have at the same time, and what is being made for it. Pure.

use crate::error::Refused;
use std::sync::{Arc, Weak};

/// A team's limits; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Capsules that are not paused or over.
    pub(crate) capsules: u32,
    pub(crate) memory_mb: u64,
}

/// How much there is, or is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) capsules: u64,
    pub(crate) vcpus: u64,
    pub(crate) memory_mb: u64,
}

impl Amount {
    /// `capsules` of one size.
    pub(crate) fn of(capsules: u64, vcpus: u32, memory_mb: u64) -> Self {
        Self {
            capsules,
            vcpus: capsules.saturating_mul(u64::from(vcpus)),
            memory_mb: capsules.saturating_mul(memory_mb),
        }
    }

    /// Both.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            capsules: self.capsules.saturating_add(other.capsules),
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mb: self.memory_mb.saturating_add(other.memory_mb),
        }
    }
}

/// Whether `more` fits beside what there is.
pub(crate) fn check(limits: Limits, there: Amount, more: Amount) -> Result<(), Refused> {
    let then = there.plus(more);
    if limits.capsules > 0 && then.capsules > u64::from(limits.capsules) {
        return Err(Refused::Quota(format!(
            "{} capsules at a time, and there are {}",
            limits.capsules, there.capsules
        )));
    }
    if limits.memory_mb > 0 && then.memory_mb > limits.memory_mb {
        return Err(Refused::Quota(format!(
            "{} MiB of memory at a time, and {} are taken",
            limits.memory_mb, there.memory_mb
        )));
    }
    Ok(())
}

/// Room that is kept for capsules being made. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Reservation {
    _alive: Arc<()>,
}

/// Who reserved how much.
#[derive(Debug)]
pub(crate) struct Reserved<T> {
    list: Vec<(Weak<()>, T, Amount)>,
}

impl<T> Default for Reserved<T> {
    fn default() -> Self {
        Self { list: Vec::new() }
    }
}

impl<T: PartialEq> Reserved<T> {
    /// Keeps room.
    pub(crate) fn add(&mut self, whose: T, amount: Amount) -> Reservation {
        let alive = Arc::new(());
        self.list.push((Arc::downgrade(&alive), whose, amount));
        Reservation { _alive: alive }
    }

    /// What is kept for `whose`.
    pub(crate) fn sum(&mut self, whose: &T) -> Amount {
        self.list.retain(|(alive, ..)| alive.strong_count() > 0);
        self.list
            .iter()
            .filter(|(_, other, _)| other == whose)
            .fold(Amount::default(), |sum, (.., amount)| sum.plus(*amount))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn within_the_limits_and_only_then(
            (capsules, memory_mb) in (0u32..10, 0u64..5000),
            (there, more) in (0u64..10, 1u64..5),
        ) {
            let (there, more) = (Amount::of(there, 1, 512), Amount::of(more, 1, 512));
            let then = there.plus(more);
            let fits = (capsules == 0 || then.capsules <= u64::from(capsules))
                && (memory_mb == 0 || then.memory_mb <= memory_mb);
            prop_assert_eq!(check(Limits { capsules, memory_mb }, there, more).is_ok(), fits);
        }
    }

    #[test]
    fn a_reservation_counts_until_it_is_dropped() {
        let mut reserved = Reserved::default();
        let first = reserved.add("a", Amount::of(2, 1, 512));
        let _second = reserved.add("b", Amount::of(1, 1, 512));
        assert_eq!(reserved.sum(&"a"), Amount { capsules: 2, vcpus: 2, memory_mb: 1024 });
        drop(first);
        assert_eq!(reserved.sum(&"a"), Amount::default());
        assert_eq!(reserved.list.len(), 1);
    }
}
