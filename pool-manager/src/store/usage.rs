//! Rows of what teams used.

use super::{Store, StoreError, signed, unreadable};
use crate::usage::{Batch, Day, Sample, TeamSample};
use hearth_proto::id::TeamId;
use std::time::Duration;
use time::OffsetDateTime;
use uuid::Uuid;

/// Where milliseconds have no room in an interval's column type.
const DAY_SECONDS: i64 = 86_400;

impl Store {
    /// One moment of all teams: the samples, and the day they add up to.
    pub(crate) async fn sampled(&self, batch: &Batch) -> Result<(), StoreError> {
        let column = |of: fn(&TeamSample) -> i64| batch.teams.iter().map(of).collect::<Vec<i64>>();
        let narrow = |of: fn(&TeamSample) -> u64| {
            let narrow = |team| i32::try_from(of(team)).unwrap_or(i32::MAX);
            batch.teams.iter().map(narrow).collect::<Vec<i32>>()
        };
        let teams: Vec<Uuid> = batch.teams.iter().map(|team| team.team.uuid()).collect();
        let running = narrow(|team| team.running.capsules);
        let vcpus = narrow(|team| team.running.vcpus);
        let memory_mb = column(|team| signed(team.running.memory_mb));
        let cpu_us = column(|team| signed(team.cpu_us));
        let memory_mb_ms = column(|team| signed(team.memory_mb_ms));
        // One statement, so that a sample and its day are written together or not at all.
        let insert = sqlx::query!(
            "WITH sample AS (
                 SELECT * FROM UNNEST($2::uuid[], $3::integer[], $4::integer[], $5::bigint[], $6::bigint[], $7::bigint[])
                     AS sample (team_id, running, vcpus, memory_mb, cpu_us, memory_mb_ms)
             ), added AS (
                 INSERT INTO team_samples (team_id, at, running, vcpus, memory_mb)
                 SELECT team_id, $1, running, vcpus, memory_mb FROM sample
                 ON CONFLICT DO NOTHING
                 RETURNING team_id
             )
             INSERT INTO team_days AS day
                 (team_id, day, cpu_us, memory_mb_ms, running_peak, vcpus_peak, memory_mb_peak)
             SELECT team_id, $8, cpu_us, memory_mb_ms, running, vcpus, memory_mb FROM sample JOIN added USING (team_id)
             ON CONFLICT (team_id, day) DO UPDATE SET
                 cpu_us = day.cpu_us + excluded.cpu_us,
                 memory_mb_ms = day.memory_mb_ms + excluded.memory_mb_ms,
                 running_peak = GREATEST(day.running_peak, excluded.running_peak),
                 vcpus_peak = GREATEST(day.vcpus_peak, excluded.vcpus_peak),
                 memory_mb_peak = GREATEST(day.memory_mb_peak, excluded.memory_mb_peak)",
            batch.at,
            &teams,
            &running,
            &vcpus,
            &memory_mb,
            &cpu_us,
            &memory_mb_ms,
            day(batch.at),
        );
        self.query(insert.execute(&self.pool)).await?;
        Ok(())
    }

    /// Removes samples from before an instant. How many there were.
    pub(crate) async fn prune_samples(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        let delete = sqlx::query!("DELETE FROM team_samples WHERE at < $1", before);
        Ok(self.query(delete.execute(&self.pool)).await?.rows_affected())
    }

    /// The largest sample of each bucket of a team, from an instant on, the oldest first.
    pub(crate) async fn series(
        &self,
        team: TeamId,
        from: OffsetDateTime,
        bucket: Duration,
    ) -> Result<Vec<Sample>, StoreError> {
        let bucket_sec = i64::try_from(bucket.as_secs()).unwrap_or(DAY_SECONDS).max(1);
        let select = sqlx::query!(
            r#"SELECT (floor(extract(epoch FROM at) / $3) * $3)::bigint AS "bucket!", max(running) AS "running!",
                      max(vcpus) AS "vcpus!", max(memory_mb) AS "memory_mb!"
               FROM team_samples WHERE team_id = $1 AND at >= $2 GROUP BY 1 ORDER BY 1"#,
            team.uuid(),
            from,
            bucket_sec as _,
        );
        let rows = self.query(select.fetch_all(&self.pool)).await?;
        rows.into_iter()
            .map(|row| sample(row.bucket.saturating_mul(1000), row.running, row.vcpus, row.memory_mb))
            .collect()
    }

    /// The largest samples of a team since a day.
    pub(crate) async fn peaks(&self, team: TeamId, from: OffsetDateTime) -> Result<Sample, StoreError> {
        let select = sqlx::query!(
            r#"SELECT coalesce(max(running_peak), 0) AS "running!", coalesce(max(vcpus_peak), 0) AS "vcpus!",
                      coalesce(max(memory_mb_peak), 0) AS "memory_mb!"
               FROM team_days WHERE team_id = $1 AND day >= $2"#,
            team.uuid(),
            day(from),
        );
        let row = self.query(select.fetch_one(&self.pool)).await?;
        sample(0, row.running, row.vcpus, row.memory_mb)
    }

    /// What a team used by day, both days included, the oldest first. Days without use are left out.
    pub(crate) async fn days(&self, team: TeamId, from: i32, to: i32) -> Result<Vec<Day>, StoreError> {
        let select = sqlx::query!(
            "SELECT day, cpu_us, memory_mb_ms FROM team_days
             WHERE team_id = $1 AND day BETWEEN $2 AND $3 ORDER BY day",
            team.uuid(),
            from,
            to,
        );
        let rows = self.query(select.fetch_all(&self.pool)).await?;
        let read = |cpu_us: i64, memory_mb_ms: i64, day: i32| {
            Ok(Day {
                day,
                cpu_us: u64::try_from(cpu_us).map_err(unreadable)?,
                memory_mb_ms: u64::try_from(memory_mb_ms).map_err(unreadable)?,
            })
        };
        rows.into_iter().map(|row| read(row.cpu_us, row.memory_mb_ms, row.day)).collect()
    }
}

/// Days since the epoch, UTC.
fn day(at: OffsetDateTime) -> i32 {
    i32::try_from(at.unix_timestamp().div_euclid(DAY_SECONDS)).unwrap_or(i32::MAX)
}

fn sample(at_ms: i64, running: i32, vcpus: i32, memory_mb: i64) -> Result<Sample, StoreError> {
    Ok(Sample {
        at_ms,
        running: u32::try_from(running).map_err(unreadable)?,
        vcpus: u32::try_from(vcpus).map_err(unreadable)?,
        memory_mb: u64::try_from(memory_mb).map_err(unreadable)?,
    })
}
