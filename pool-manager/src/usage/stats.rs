//! Answers to how much a team has running and uses.

use super::{Day, Sample};
use crate::{
    capsule::{clerk::Clerk, now, quota::Amount},
    error::Refused,
    store::Store,
};
use hearth_proto::id::TeamId;
use std::time::Duration;

/// Most buckets of one answer.
const BUCKETS_MAX: u64 = 720;
/// Longest range: what is kept.
const RANGE_MAX_SEC: u64 = 60 * 86_400;
/// Most days of one answer.
const DAYS_MAX: i32 = 92;
/// The span of [`Stats::peaks`].
const PEAKS: time::Duration = time::Duration::days(30);

/// A team now, at most, and over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) current: Sample,
    pub(crate) peaks: Sample,
    pub(crate) series: Vec<Sample>,
}

/// Answers.
#[derive(Debug, Clone)]
pub(crate) struct Statistics {
    pub(crate) clerk: Clerk,
    pub(crate) store: Store,
}

impl Statistics {
    /// What a team has running.
    pub(crate) async fn team(&self, team: TeamId, range_sec: u64, bucket_sec: u64) -> Result<Stats, Refused> {
        let (range, bucket) = check(range_sec, bucket_sec)?;
        let records = self.clerk.list(team).await?;
        let running = records
            .iter()
            .filter(|record| record.state.is_running())
            .fold(Amount::default(), |sum, record| sum.plus(Amount::of(1, record.vcpus, record.memory_mb)));
        let now = now();
        let current = Sample {
            at_ms: i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX),
            running: u32::try_from(running.capsules).unwrap_or(u32::MAX),
            vcpus: u32::try_from(running.vcpus).unwrap_or(u32::MAX),
            memory_mb: running.memory_mb,
        };
        let series = self.store.series(team, now - range, bucket).await.map_err(|error| error.refused())?;
        let peaks = self.store.peaks(team, now - PEAKS).await.map_err(|error| error.refused())?;
        let peaks = Sample {
            at_ms: 0,
            running: peaks.running.max(current.running),
            vcpus: peaks.vcpus.max(current.vcpus),
            memory_mb: peaks.memory_mb.max(current.memory_mb),
        };
        Ok(Stats { current, peaks, series })
    }

    /// What a team used by day, both days included.
    pub(crate) async fn days(&self, team: TeamId, from: i32, to: i32) -> Result<Vec<Day>, Refused> {
        let days = i64::from(to) - i64::from(from) + 1;
        if !(1..=i64::from(DAYS_MAX)).contains(&days) {
            return Err(Refused::Invalid(format!("from_day, to_day: 1 to {DAYS_MAX} days, not {days}")));
        }
        self.store.days(team, from, to).await.map_err(|error| error.refused())
    }
}

fn check(range_sec: u64, bucket_sec: u64) -> Result<(Duration, Duration), Refused> {
    if !(1..=RANGE_MAX_SEC).contains(&range_sec) {
        return Err(Refused::Invalid(format!("range_sec: 1 to {RANGE_MAX_SEC}, not {range_sec}")));
    }
    if bucket_sec == 0 || range_sec.div_ceil(bucket_sec) > BUCKETS_MAX {
        return Err(Refused::Invalid(format!("bucket_sec: so that there are at most {BUCKETS_MAX} buckets")));
    }
    Ok((Duration::from_secs(range_sec), Duration::from_secs(bucket_sec)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_number_of_buckets_is_bounded(range_sec in 0u64..10_000_000, bucket_sec in 0u64..100_000) {
            match check(range_sec, bucket_sec) {
                Ok((range, bucket)) => prop_assert!(range.as_secs().div_ceil(bucket.as_secs()) <= BUCKETS_MAX),
                Err(_) => prop_assert!(
                    range_sec == 0
                        || range_sec > RANGE_MAX_SEC
                        || bucket_sec == 0
                        || range_sec / bucket_sec >= BUCKETS_MAX
                ),
            }
        }
    }
}
