//! (pure) When a running capsule is to be paused or destroyed, and how long until then.
//!
//! Times are spans since the capsule's life began (its restore, its claim, its resume), so that nothing here reads a
//! clock.

use hearth_proto::wire::agent::TimeoutAction;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The longest timeout that can be asked for: a year.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);
/// After a pause that failed, before the next attempt; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(600);

/// What happens to a capsule whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It goes to disk.
    #[default]
    Pause,
    /// It goes away.
    Destroy,
}

/// A capsule's timeouts. Kept over pauses, restarts and copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timeouts {
    /// Milliseconds without use that it may have; zero: any number.
    #[serde(default)]
    pub idle_ms: u64,
    /// What then.
    #[serde(default)]
    pub idle_action: Action,
    /// Milliseconds that it may run; zero: no limit.
    #[serde(default)]
    pub lifetime_ms: u64,
    /// What then.
    #[serde(default)]
    pub action: Action,
    /// Milliseconds of the lifetime that were used up before its present life.
    #[serde(default)]
    pub lived_ms: u64,
}

/// What is known of a capsule's use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// A stream is open.
    pub busy: bool,
    /// When the last use ended.
    pub last: Duration,
}

/// Pauses that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failures {
    /// In a row.
    pub count: u32,
    /// When the last one failed.
    pub last: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing before this has passed. None: nothing at all.
    Wait(Option<Duration>),
    /// Pause it; the reason in a word.
    Pause(&'static str),
    /// Destroy it; the reason in a word.
    Destroy(&'static str),
}

/// From a request's field `name`.
fn action_of(name: &'static str, action: i32) -> Result<Action, (&'static str, String)> {
    match TimeoutAction::try_from(action) {
        Ok(TimeoutAction::Unspecified | TimeoutAction::Pause) => Ok(Action::Pause),
        Ok(TimeoutAction::Destroy) => Ok(Action::Destroy),
        Err(_) => Err((name, format!("{action} is not one of PAUSE and DESTROY"))),
    }
}

impl Action {
    /// The wire form.
    pub fn wire(self) -> TimeoutAction {
        match self {
            Self::Pause => TimeoutAction::Pause,
            Self::Destroy => TimeoutAction::Destroy,
        }
    }
}

impl Timeouts {
    /// From a request's fields: milliseconds and what then, of use and of life. The error names the field.
    pub fn new(
        (idle_ms, idle_action): (u64, i32),
        (lifetime_ms, action): (u64, i32),
    ) -> Result<Self, (&'static str, String)> {
        let idle_action = action_of("idle_action", idle_action)?;
        let action = action_of("timeout_action", action)?;
        for (field, value) in [("idle_timeout_ms", idle_ms), ("timeout_ms", lifetime_ms)] {
            if LONGEST.as_millis() < u128::from(value) {
                return Err((field, format!("{value} is more than a year ({} ms)", LONGEST.as_millis())));
            }
        }
        Ok(Self { idle_ms, idle_action, lifetime_ms, action, lived_ms: 0 })
    }

    /// The same, with the whole lifetime ahead.
    pub fn renewed(self) -> Self {
        Self { lived_ms: 0, ..self }
    }

    /// The same after a life of this length. One whose time was over begins anew: it would end at once when it is
    /// resumed.
    pub fn after(self, life: Duration) -> Self {
        let lived_ms = self.lived_ms.saturating_add(life.as_millis() as u64);
        if self.lifetime_ms <= lived_ms { self.renewed() } else { Self { lived_ms, ..self } }
    }

    /// Decides at the time `now`.
    pub fn decide(&self, now: Duration, used: Use, failures: Failures) -> Verdict {
        let left = |ms: u64, since: Duration| (Duration::from_millis(ms) + since).saturating_sub(now);
        let life = self.lifetime_ms.saturating_sub(self.lived_ms);
        let lifetime = (self.lifetime_ms != 0).then(|| left(life, Duration::ZERO));
        // While a stream is open its end is awaited, and the whole time after it.
        let idle = (self.idle_ms != 0).then(|| left(self.idle_ms, if used.busy { now } else { used.last }));
        // At one moment the lifetime goes first, and what is destroyed need not be paused.
        let dues = [(lifetime, self.action, "lifetime"), (idle, self.idle_action, "idle")];
        let soonest = |wanted: Action| {
            let dues = dues.iter().filter(|(_, action, _)| *action == wanted);
            dues.filter_map(|(due, _, reason)| Some(((*due)?, *reason))).min_by_key(|(due, _)| *due)
        };
        let destroys = soonest(Action::Destroy);
        if let Some((Duration::ZERO, reason)) = destroys {
            return Verdict::Destroy(reason);
        }
        match soonest(Action::Pause).map(|(due, reason)| (due.max(failures.retry_in(now)), reason)) {
            Some((Duration::ZERO, reason)) => Verdict::Pause(reason),
            pauses => Verdict::Wait(pauses.into_iter().chain(destroys).map(|(due, _)| due).min()),
        }
    }
}

impl Failures {
    /// One more, at the time `now`.
    pub fn another(self, now: Duration) -> Self {
        Self { count: self.count.saturating_add(1), last: now }
    }

    fn retry_in(self, now: Duration) -> Duration {
        if self.count == 0 {
            return Duration::ZERO;
        }
        let doubled = RETRY_FIRST.saturating_mul(1 << (self.count - 1).min(16)).min(RETRY_MOST);
        (self.last + doubled).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEVER: Failures = Failures { count: 0, last: Duration::ZERO };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn idle_since(seconds: u64) -> Use {
        Use { busy: false, last: s(seconds) }
    }

    const BUSY: Use = Use { busy: true, last: Duration::ZERO };

    fn timeouts(idle: u64, lifetime: u64, action: Action) -> Timeouts {
        let idle_action = Action::Pause;
        Timeouts { idle_ms: idle * 1000, idle_action, lifetime_ms: lifetime * 1000, action, lived_ms: 0 }
    }

    #[test]
    fn without_timeouts_nothing_ever_happens() {
        let none = Timeouts::default();
        assert_eq!(none.decide(s(1_000_000), idle_since(0), NEVER), Verdict::Wait(None));
    }

    #[test]
    fn an_idle_capsule_is_paused_and_a_busy_one_is_not() {
        let ten = timeouts(10, 0, Action::Pause);
        assert_eq!(ten.decide(s(9), idle_since(0), NEVER), Verdict::Wait(Some(s(1))));
        assert_eq!(ten.decide(s(10), idle_since(0), NEVER), Verdict::Pause("idle"));
        assert_eq!(ten.decide(s(10), idle_since(4), NEVER), Verdict::Wait(Some(s(4))));
        assert_eq!(ten.decide(s(500), BUSY, NEVER), Verdict::Wait(Some(s(10))));
    }

    #[test]
    fn a_lifetime_ends_whether_it_is_used_or_not() {
        let pause = timeouts(0, 60, Action::Pause);
        assert_eq!(pause.decide(s(59), BUSY, NEVER), Verdict::Wait(Some(s(1))));
        assert_eq!(pause.decide(s(60), BUSY, NEVER), Verdict::Pause("lifetime"));
        let destroy = timeouts(5, 60, Action::Destroy);
        assert_eq!(destroy.decide(s(61), BUSY, NEVER), Verdict::Destroy("lifetime"));
        assert_eq!(destroy.decide(s(6), idle_since(1), NEVER), Verdict::Pause("idle"));
    }

    #[test]
    fn an_idle_capsule_is_destroyed_where_that_was_asked_for() {
        let gone = Timeouts { idle_action: Action::Destroy, ..timeouts(10, 60, Action::Pause) };
        assert_eq!(gone.decide(s(9), idle_since(0), NEVER), Verdict::Wait(Some(s(1))));
        assert_eq!(gone.decide(s(10), idle_since(0), NEVER), Verdict::Destroy("idle"));
        assert_eq!(gone.decide(s(55), BUSY, NEVER), Verdict::Wait(Some(s(5))));
        assert_eq!(gone.decide(s(60), BUSY, NEVER), Verdict::Pause("lifetime"));
        // Failed pauses put the next pause off, not the end.
        let failed = NEVER.another(s(60));
        assert_eq!(gone.decide(s(60), idle_since(55), failed), Verdict::Wait(Some(s(1))));
        assert_eq!(gone.decide(s(60), idle_since(50), failed), Verdict::Destroy("idle"));
        let both = Timeouts { idle_action: Action::Destroy, ..timeouts(10, 60, Action::Destroy) };
        assert_eq!(both.decide(s(60), idle_since(50), NEVER), Verdict::Destroy("lifetime"));
    }

    #[test]
    fn a_pause_that_failed_is_tried_again_ever_later() {
        let ten = timeouts(10, 0, Action::Pause);
        let once = NEVER.another(s(10));
        assert_eq!(ten.decide(s(10), idle_since(0), once), Verdict::Wait(Some(s(1))));
        assert_eq!(ten.decide(s(11), idle_since(0), once), Verdict::Pause("idle"));
        let twice = once.another(s(11));
        assert_eq!(ten.decide(s(11), idle_since(0), twice), Verdict::Wait(Some(s(2))));
        let often = (0..100).fold(NEVER, |failures, _| failures.another(s(11)));
        assert_eq!(ten.decide(s(11), idle_since(0), often), Verdict::Wait(Some(RETRY_MOST)));
    }

    #[test]
    fn time_in_a_pause_does_not_count_and_an_expired_capsule_lives_again() {
        let hour = timeouts(0, 3600, Action::Destroy).after(s(3000));
        assert_eq!(hour.decide(s(599), idle_since(0), NEVER), Verdict::Wait(Some(s(1))));
        assert_eq!(hour.decide(s(600), idle_since(0), NEVER), Verdict::Destroy("lifetime"));
        assert_eq!(hour.after(s(600)), timeouts(0, 3600, Action::Destroy));
        assert_eq!(hour.renewed(), timeouts(0, 3600, Action::Destroy));
        assert_eq!(Timeouts::default().after(s(5)), Timeouts::default());
    }

    #[test]
    fn wrong_fields_are_named() {
        let new = |idle, idle_action, life, action| Timeouts::new((idle, idle_action), (life, action));
        assert_eq!(new(u64::MAX, 0, 0, 0).unwrap_err().0, "idle_timeout_ms");
        assert_eq!(new(0, 0, u64::MAX, 1).unwrap_err().0, "timeout_ms");
        assert_eq!(new(0, 0, 0, 7).unwrap_err().0, "timeout_action");
        assert_eq!(new(0, 7, 0, 0).unwrap_err().0, "idle_action");
        let both = new(1, 2, 2, 1).unwrap();
        assert_eq!((both.idle_action, both.action), (Action::Destroy, Action::Pause));
    }

    proptest! {
        #[test]
        fn waiting_as_long_as_was_said_is_never_waiting_for_nothing(
            idle in 0..100u64, lifetime in 0..100u64, now in 0..200u64, last in 0..200u64, count in 0..4u32,
            destroys: bool, idle_destroys: bool,
        ) {
            let action = |destroys| if destroys { Action::Destroy } else { Action::Pause };
            let idle_action = action(idle_destroys);
            let timeouts = Timeouts { idle_action, ..timeouts(idle, lifetime, action(destroys)) };
            let (now, used) = (s(now), idle_since(last.min(now)));
            let failures = Failures { count, last: now };
            if let Verdict::Wait(Some(wait)) = timeouts.decide(now, used, failures) {
                prop_assert!(wait > Duration::ZERO);
                let then = timeouts.decide(now + wait, used, failures);
                prop_assert!(!matches!(then, Verdict::Wait(_)), "{then:?}");
            }
        }
    }
}
