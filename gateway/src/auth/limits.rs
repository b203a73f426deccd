//! Limits per key and team: requests and creations per second, and seconds of code per hour. In memory; each gateway
//! counts for itself.

use crate::{config::Config, error::ApiError};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock, clock::DefaultClock};
use hearth_proto::id::{KeyId, TeamId};
use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long the seconds of code are counted together.
const WINDOW: Duration = Duration::from_secs(3600);
/// Teams whose seconds are counted; beyond it those whose window is over are forgotten.
const TEAMS_MAX: usize = 10_000;

/// The counters. See the module.
pub(crate) struct Limits {
    requests: Option<DefaultKeyedRateLimiter<KeyId>>,
    creates: Option<DefaultKeyedRateLimiter<KeyId>>,
    /// 0: no limit.
    run_seconds_per_hour: u64,
    used: Mutex<HashMap<TeamId, Used>>,
}

/// What a team used in the window that began at `since`.
#[derive(Debug, Clone, Copy)]
struct Used {
    since: Instant,
    time: Duration,
}

impl Limits {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            requests: limiter(config.requests_per_sec),
            creates: limiter(config.creates_per_sec),
            run_seconds_per_hour: config.run_seconds_per_hour,
            used: Mutex::default(),
        }
    }

    /// Counts a request.
    pub(crate) fn request(&self, key: KeyId) -> Result<(), ApiError> {
        check(self.requests.as_ref(), key, "requests")
    }

    /// Counts a capsule that is to be made.
    pub(crate) fn create(&self, key: KeyId) -> Result<(), ApiError> {
        check(self.creates.as_ref(), key, "new capsules")
    }

    /// Whether a team may run more code in this hour.
    pub(crate) fn may_run(&self, team: TeamId, now: Instant) -> Result<(), ApiError> {
        if self.run_seconds_per_hour == 0 {
            return Ok(());
        }
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(used) = used.get(&team).filter(|used| now < used.since + WINDOW) else { return Ok(()) };
        if used.time.as_secs() < self.run_seconds_per_hour {
            return Ok(());
        }
        let left = (used.since + WINDOW).saturating_duration_since(now).as_secs() + 1;
        let message =
            format!("the team's {} seconds of code of this hour are used up", self.run_seconds_per_hour);
        Err(ApiError::rate_limited(message, u32::try_from(left).unwrap_or(u32::MAX)))
    }

    /// Counts code that ran.
    pub(crate) fn ran(&self, team: TeamId, time: Duration, now: Instant) {
        if self.run_seconds_per_hour == 0 {
            return;
        }
        let mut teams = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if teams.len() >= TEAMS_MAX && !teams.contains_key(&team) {
            teams.retain(|_, used| now < used.since + WINDOW);
        }
        let fresh = Used { since: now, time: Duration::ZERO };
        let used = teams.entry(team).or_insert(fresh);
        if used.since + WINDOW <= now {
            *used = fresh;
        }
        used.time += time;
    }

    /// Forgets keys that were not used lately.
    pub(crate) fn tidy(&self) {
        for limiter in [&self.requests, &self.creates].into_iter().flatten() {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

/// `per_second` on average, twice as many at once. 0: no limit.
fn limiter(per_second: u32) -> Option<DefaultKeyedRateLimiter<KeyId>> {
    let per_second = NonZeroU32::new(per_second)?;
    let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(1));
    Some(RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst)))
}

fn check(limiter: Option<&DefaultKeyedRateLimiter<KeyId>>, key: KeyId, what: &str) -> Result<(), ApiError> {
    let Some(limiter) = limiter else { return Ok(()) };
    limiter.check_key(&key).map_err(|until| {
        let wait = until.wait_time_from(DefaultClock::default().now()).as_secs() + 1;
        let message = format!("too many {what} with this API key; try again");
        ApiError::rate_limited(message, u32::try_from(wait).unwrap_or(u32::MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_proto::error::ErrorCode;

    fn limits(config: Config) -> Limits {
        Limits::new(&config)
    }

    #[test]
    fn a_key_has_its_burst_and_then_waits_and_others_do_not() {
        let limits = limits(Config { creates_per_sec: 3, ..Config::for_tests() });
        let (one, other) = (KeyId::new(), KeyId::new());
        let refused = (0..100).find_map(|_| limits.create(one).err()).expect("a limit");
        assert_eq!(refused.code(), ErrorCode::RateLimited);
        assert!(limits.create(other).is_ok());
        limits.tidy();
        assert!(limits.create(one).is_err());
    }

    #[test]
    fn no_limit_is_no_limit() {
        let config = Config { requests_per_sec: 0, run_seconds_per_hour: 0, ..Config::for_tests() };
        let (limits, key, team) = (limits(config), KeyId::new(), TeamId::new());
        limits.ran(team, Duration::from_secs(1 << 20), Instant::now());
        assert!((0..100_000).all(|_| limits.request(key).is_ok()));
        assert!(limits.may_run(team, Instant::now()).is_ok());
    }

    #[test]
    fn seconds_of_code_count_for_an_hour() {
        let limits = limits(Config { run_seconds_per_hour: 10, ..Config::for_tests() });
        let (team, start) = (TeamId::new(), Instant::now());
        limits.ran(team, Duration::from_secs(9), start);
        assert!(limits.may_run(team, start).is_ok());
        limits.ran(team, Duration::from_secs(2), start + Duration::from_secs(60));
        assert!(limits.may_run(team, start + Duration::from_secs(61)).is_err());
        assert!(limits.may_run(TeamId::new(), start).is_ok());
        assert!(limits.may_run(team, start + WINDOW).is_ok());
        limits.ran(team, Duration::from_secs(1), start + WINDOW);
        assert!(limits.may_run(team, start + WINDOW).is_ok());
    }
}
