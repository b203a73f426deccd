//! What teams have running and use: sampled every ten seconds while a team has capsules, added up by day.

pub(crate) mod sampler;
pub(crate) mod stats;

use crate::capsule::{book::TeamNow, quota::Amount};
use hearth_proto::id::TeamId;
use std::time::Duration;
use time::OffsetDateTime;

/// Between two samples.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// One moment of all teams that have capsules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) at: OffsetDateTime,
    pub(crate) teams: Vec<TeamSample>,
}

/// A team in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TeamSample {
    pub(crate) team: TeamId,
    pub(crate) running: Amount,
    /// Since the sample before.
    pub(crate) cpu_us: u64,
    /// Memory times the time since the sample before.
    pub(crate) memory_mb_ms: u64,
}

/// What a team had running at a moment, or at most in a span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Milliseconds since the epoch.
    pub(crate) at_ms: i64,
    pub(crate) running: u32,
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u64,
}

/// What a team used in a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Day {
    /// Since the epoch, UTC.
    pub(crate) day: i32,
    pub(crate) cpu_us: u64,
    pub(crate) memory_mb_ms: u64,
}

impl TeamSample {
    /// What was measured `since` the sample before.
    pub(crate) fn new(now: TeamNow, since: Duration) -> Self {
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Self {
            team: now.team,
            running: now.running,
            cpu_us: now.cpu_us,
            memory_mb_ms: now.running.memory_mb.saturating_mul(since_ms),
        }
    }
}
