//! The guest's wall clock, kept by the agent's time that every call carries.
//!
//! A capsule's processors stand still while it is parked or snapshotted, and its clock with them.

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};
use std::{
    io,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

/// The agent's time is the past when it arrives. A clock that is behind it is wrong for certain; this much is let be.
const BEHIND_MAX_NS: i64 = 3_000_000;
/// A clock that is ahead of it may be right: a busy guest reads its calls late. Stepping back for that would make
/// time run backwards under user code, so it is done only for what no call's way explains, within the 50 ms promised.
const AHEAD_MAX_NS: i64 = 40_000_000;

/// Where the corrections go.
#[derive(Debug)]
pub enum Clock {
    /// The kernel's CLOCK_REALTIME.
    System,
    /// An offset beside it in nanoseconds, for tests that must not change the machine's time.
    Offset(AtomicI64),
}

impl Clock {
    /// The time now, in nanoseconds since the epoch.
    pub fn now_ns(&self) -> io::Result<i64> {
        let system = nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?);
        Ok(match self {
            Self::System => system,
            Self::Offset(offset) => system.saturating_add(offset.load(Ordering::Relaxed)),
        })
    }

    /// Sets the time.
    pub fn set_ns(&self, to_ns: i64) -> io::Result<()> {
        match self {
            Self::System => {
                let since_epoch = Duration::from_nanos(u64::try_from(to_ns).unwrap_or(0));
                clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(since_epoch))?;
            }
            Self::Offset(offset) => {
                let system = nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?);
                offset.store(to_ns.saturating_sub(system), Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Sets the time to the agent's if it is off.
    pub fn keep(&self, agent_ns: i64) -> io::Result<()> {
        if is_off(self.now_ns()?, agent_ns) { self.set_ns(agent_ns) } else { Ok(()) }
    }
}

fn nanoseconds(time: TimeSpec) -> i64 {
    time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec())
}

/// (pure) Whether a clock that shows `now_ns` is to be set to the agent's.
fn is_off(now_ns: i64, agent_ns: i64) -> bool {
    let ahead = now_ns.saturating_sub(agent_ns);
    !(-BEHIND_MAX_NS..=AHEAD_MAX_NS).contains(&ahead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_call_does_not_turn_time_back() {
        const MS: i64 = 1_000_000;
        let agent = 1_800_000_000_000 * MS;
        for (ahead_ms, off) in [(0, false), (-2, false), (-4, true), (-60_000, true), (30, false), (41, true)]
        {
            assert_eq!(is_off(agent + ahead_ms * MS, agent), off, "{ahead_ms} ms");
        }
        assert!(is_off(i64::MAX, i64::MIN));
    }

    #[test]
    fn an_offset_clock_is_set_without_the_machine_noticing() {
        let clock = Clock::Offset(AtomicI64::new(0));
        let before = Clock::System.now_ns().unwrap();
        clock.keep(before - 3_600_000_000_000).unwrap();
        let (set, system) = (clock.now_ns().unwrap(), Clock::System.now_ns().unwrap());
        assert!(set < before - 3_500_000_000_000 && before <= system);
    }
}
