//! What to do with a capsule on a host that nothing in this process explains. Pure: time is an argument.
//!
//! Strangers come from an earlier pool-manager. Its parked capsules are nobody's and can be used. Its one-shots were in
//! its memory only, so nobody can know their user; but a one-shot never outlives the longest lease, so one that has run
//! unexplained for longer than that has no user any more. Counting starts when *this* process first saw it: the
//! agent's creation time would count the time in the pool.

use super::observed::Live;
use hearth_proto::id::CapsuleId;
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio::time::Instant;

/// What becomes of a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Into the pool of its template; destroyed when that is full or does not exist.
    Adopt,
    /// Not understood yet.
    Leave,
    /// Nobody can be using it.
    Destroy,
}

/// Judges a stranger that has been seen for `seen_for`.
pub(crate) fn judge(state: &Live, seen_for: Duration, lease_max: Duration) -> Verdict {
    match state {
        Live::Parked => Verdict::Adopt,
        Live::Starting | Live::Running if seen_for > lease_max => Verdict::Destroy,
        Live::Starting | Live::Running => Verdict::Leave,
        // Nothing runs, and somebody may want it back.
        Live::Moving | Live::Paused => Verdict::Leave,
        // Its end is under way or done, and whoever ended it wants its reason.
        Live::Stopping | Live::Stopped { .. } | Live::Failed { .. } => Verdict::Leave,
    }
}

/// Since when each stranger is known.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    since: HashMap<CapsuleId, Instant>,
}

impl Strangers {
    /// How long `id` has been known as a stranger.
    pub(crate) fn seen(&mut self, id: CapsuleId, now: Instant) -> Duration {
        now.saturating_duration_since(*self.since.entry(id).or_insert(now))
    }

    /// Forgets all but `present`.
    pub(crate) fn keep(&mut self, present: &HashSet<CapsuleId>) {
        self.since.retain(|id, _| present.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Duration = Duration::from_secs(900);

    fn live() -> impl Strategy<Value = Live> {
        prop_oneof![
            Just(Live::Starting),
            Just(Live::Parked),
            Just(Live::Running),
            Just(Live::Moving),
            Just(Live::Paused),
            Just(Live::Stopping),
            Just(Live::Stopped { reason: String::new() }),
            Just(Live::Failed { reason: String::new() }),
        ]
    }

    proptest! {
        #[test]
        fn within_the_longest_lease_no_stranger_is_destroyed(state in live(), seen_ms in 0u64..=900_000) {
            prop_assert_ne!(judge(&state, Duration::from_millis(seen_ms), LEASE), Verdict::Destroy);
        }

        #[test]
        fn only_parked_strangers_are_adopted(state in live(), seen_ms: u64) {
            let adopted = judge(&state, Duration::from_millis(seen_ms), LEASE) == Verdict::Adopt;
            prop_assert_eq!(adopted, state == Live::Parked);
        }
    }

    #[test]
    fn a_running_stranger_is_destroyed_after_the_longest_lease() {
        let mut strangers = Strangers::default();
        let (id, start) = (CapsuleId::new(), Instant::now());
        assert_eq!(strangers.seen(id, start), Duration::ZERO);
        let late = strangers.seen(id, start + LEASE + Duration::from_secs(1));
        assert_eq!(judge(&Live::Running, late, LEASE), Verdict::Destroy);
    }

    #[test]
    fn a_stranger_that_left_counts_from_anew() {
        let mut strangers = Strangers::default();
        let (id, start) = (CapsuleId::new(), Instant::now());
        strangers.seen(id, start);
        strangers.keep(&HashSet::new());
        assert_eq!(strangers.seen(id, start + LEASE), Duration::ZERO);
    }
}
