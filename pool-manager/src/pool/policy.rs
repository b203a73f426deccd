//! What a pool should do now. Pure: no clock, no I/O.
//!
//! The target is fixed now; a forecast will become one more input of [`decide`]. Refills yield twice: to restores that
//! somebody waits for, and to the run that a take has just started, because a restore costs a core for a tenth of a
//! second and the run wants it first.

use std::time::Duration;

/// How long after a take refills hold back: longer than a short run, shorter than a person notices.
const SETTLE: Duration = Duration::from_millis(50);

/// How long takes in a row can hold refills back.
const SETTLE_MOST: Duration = Duration::from_millis(250);

/// What a pool decides from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Situation {
    /// Capsules that can be taken.
    pub(crate) parked: usize,
    /// Capsules being restored for the pool.
    pub(crate) refilling: usize,
    /// Capsules the pool should have.
    pub(crate) target: usize,
    /// Restores for the pool at once.
    pub(crate) refills_max: usize,
    /// Restores that somebody waits for, running or queued.
    pub(crate) demand: usize,
    /// Whether the host can restore: its agent is connected and the template is there.
    pub(crate) open: bool,
    /// Since the last take; `None` when there was none.
    pub(crate) since_take: Option<Duration>,
    /// For how long the pool has been below its target.
    pub(crate) lacking_for: Duration,
    /// What is left of the pause after failed refills.
    pub(crate) pause: Duration,
}

/// What to do. Everything but `Rest` changes the situation, or time does: decide again then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing until the situation changes.
    Rest,
    /// Nothing for this long.
    Wait(Duration),
    /// Start so many restores.
    Refill(usize),
    /// Destroy so many parked capsules, the oldest first.
    Retire(usize),
}

/// Decides from the situation alone.
pub(crate) fn decide(now: Situation) -> Decision {
    if now.parked > now.target {
        return Decision::Retire(now.parked - now.target);
    }
    let lacking = now.target.saturating_sub(now.parked + now.refilling);
    let free = now.refills_max.saturating_sub(now.refilling);
    let start = lacking.min(free);
    if start == 0 || !now.open || now.demand > 0 {
        return Decision::Rest;
    }
    let wait = now.pause.max(settling(now));
    if wait > Duration::ZERO { Decision::Wait(wait) } else { Decision::Refill(start) }
}

fn settling(now: Situation) -> Duration {
    let since_take = now.since_take.unwrap_or(SETTLE);
    SETTLE.saturating_sub(since_take).min(SETTLE_MOST.saturating_sub(now.lacking_for))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUIET: Situation = Situation {
        parked: 0,
        refilling: 0,
        target: 4,
        refills_max: 2,
        demand: 0,
        open: true,
        since_take: None,
        lacking_for: Duration::ZERO,
        pause: Duration::ZERO,
    };

    fn millis() -> impl Strategy<Value = Duration> {
        (0u64..2000).prop_map(Duration::from_millis)
    }

    prop_compose! {
        fn situation()(
            (parked, refilling, target, refills_max) in (0usize..20, 0usize..8, 0usize..20, 1usize..8),
            (demand, open, since_take) in (0usize..3, any::<bool>(), prop::option::of(millis())),
            (lacking_for, pause) in (millis(), millis()),
        ) -> Situation {
            Situation { parked, refilling, target, refills_max, demand, open, since_take, lacking_for, pause }
        }
    }

    proptest! {
        #[test]
        fn a_pool_never_passes_its_target_nor_its_bound(now in situation()) {
            match decide(now) {
                Decision::Refill(count) => {
                    prop_assert!(count > 0);
                    prop_assert!(now.parked + now.refilling + count <= now.target);
                    prop_assert!(now.refilling + count <= now.refills_max);
                }
                Decision::Retire(count) => prop_assert_eq!(now.parked - count, now.target),
                Decision::Wait(wait) => prop_assert!(wait > Duration::ZERO),
                Decision::Rest => {}
            }
        }

        #[test]
        fn nothing_is_started_while_somebody_waits_or_the_host_cannot(now in situation()) {
            if now.demand > 0 || !now.open || now.pause > Duration::ZERO {
                prop_assert!(!matches!(decide(now), Decision::Refill(_)));
            }
        }

        #[test]
        fn steady_takes_do_not_starve_the_pool(now in situation()) {
            let lacking = Situation { lacking_for: SETTLE_MOST, pause: Duration::ZERO, ..now };
            prop_assert!(!matches!(decide(lacking), Decision::Wait(_)));
        }

        #[test]
        fn after_its_wait_a_pool_starts(now in situation()) {
            if let Decision::Wait(wait) = decide(now) {
                let later = Situation {
                    since_take: now.since_take.map(|since| since + wait),
                    lacking_for: now.lacking_for + wait,
                    pause: now.pause.saturating_sub(wait),
                    ..now
                };
                prop_assert!(matches!(decide(later), Decision::Refill(_)));
            }
        }

        #[test]
        fn left_alone_a_pool_reaches_its_target(target in 0usize..50, refills_max in 1usize..8, parked in 0usize..60) {
            let mut now = Situation { parked, target, refills_max, ..QUIET };
            for _ in 0..200 {
                match decide(now) {
                    Decision::Refill(count) => now.refilling += count,
                    Decision::Retire(count) => now.parked -= count,
                    Decision::Wait(_) => unreachable!("nothing was taken"),
                    Decision::Rest if now.refilling == 0 => break,
                    Decision::Rest => {
                        now.refilling -= 1;
                        now.parked += 1;
                    }
                }
            }
            prop_assert_eq!((now.parked, now.refilling), (target, 0));
        }
    }

    #[test]
    fn the_first_fill_does_not_wait() {
        assert_eq!(decide(QUIET), Decision::Refill(2));
    }

    #[test]
    fn a_take_holds_refills_back_for_a_moment() {
        let taken = Situation { parked: 3, since_take: Some(Duration::from_millis(10)), ..QUIET };
        assert_eq!(decide(taken), Decision::Wait(Duration::from_millis(40)));
    }
}
