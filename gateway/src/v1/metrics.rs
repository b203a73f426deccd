//! What capsules use: one over time, a team's together, and by day.

use crate::{
    app::App, auth::Caller, error::ApiError, json::query::Query, middleware::Scope,
    ops::capsules::unknown_capsule, v1::CapsulePath, v1::capsule_body::instant,
};
use axum::{Extension, Json, extract::State};
use hearth_proto::{
    id::CapsuleId,
    wire::{
        agent::UsagePoint,
        pool::{CapsuleUsageRequest, TeamSample, TeamStats, TeamStatsRequest, TeamUsageRequest},
    },
};
use serde::Serialize;
use time::{Date, OffsetDateTime, format_description::well_known::Iso8601};

/// Ranges of one capsule's metrics, in seconds.
const RANGES: [(&str, u64); 7] = [
    ("5m", 300),
    ("10m", 600),
    ("1h", 3_600),
    ("2h", 7_200),
    ("6h", 21_600),
    ("12h", 43_200),
    ("24h", 86_400),
];
/// Ranges of a team's statistics and their buckets, in seconds.
const STATS_RANGES: [(&str, u64, u64); 5] = [
    ("5m", 300, 3),
    ("1h", 3_600, 30),
    ("6h", 21_600, 180),
    ("24h", 86_400, 720),
    ("30d", 2_592_000, 21_600),
];
const USAGE_DAYS: i32 = 30;
const USAGE_DAYS_MAX: i32 = 92;
/// Julian day of 1970-01-01.
const EPOCH_DAY: i32 = 2_440_588;

/// One capsule over time.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct MetricsAnswer {
    #[schema(value_type = String)]
    sandbox_id: CapsuleId,
    range: &'static str,
    points: Vec<MetricPoint>,
}

/// One interval, told by its end.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct MetricPoint {
    timestamp_unix: i64,
    /// Of all its vCPUs together, 0 to 100.
    cpu_pct: f64,
    /// Its own memory and what it shares with others.
    mem_bytes: u64,
    disk_bytes: u64,
    /// On its link, in the interval's end since it was made.
    received_bytes: u64,
    sent_bytes: u64,
}

impl From<UsagePoint> for MetricPoint {
    fn from(point: UsagePoint) -> Self {
        Self {
            timestamp_unix: point.at_ms.div_euclid(1_000),
            // The VMM's own work is not the guest's.
            cpu_pct: point.cpu_pct.clamp(0.0, 100.0),
            mem_bytes: point.private_bytes.saturating_add(point.shared_bytes),
            disk_bytes: point.disk_bytes,
            received_bytes: point.received_bytes,
            sent_bytes: point.sent_bytes,
        }
    }
}

/// What a capsule used, also a paused one.
pub(crate) async fn capsule(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    mut query: Query,
) -> Result<Json<MetricsAnswer>, ApiError> {
    let wanted = query.text("range").unwrap_or_else(|| "10m".to_owned());
    let (range, range_sec) = RANGES
        .into_iter()
        .find(|(range, _)| *range == wanted)
        .ok_or_else(|| query.fault("range", "must be of 5m, 10m, 1h, 2h, 6h, 12h, 24h"))?;
    let (team_id, capsule_id) = (caller.team.to_string(), capsule.to_string());
    let request = CapsuleUsageRequest { team_id, capsule_id, range_sec };
    let usage = app.pool.get_capsule_usage(request, &scope.request_id).await.map_err(unknown_capsule)?;
    let points = usage.points.into_iter().map(MetricPoint::from).collect();
    Ok(Json(MetricsAnswer { sandbox_id: capsule, range, points }))
}

/// A team's capsules together.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct StatsAnswer {
    range: &'static str,
    current: Current,
    peaks: Peaks,
    series: Series,
}

/// Now.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Current {
    running_count: u32,
    vcpus_reserved: u32,
    memory_mb_reserved: u64,
}

/// The largest of the last 30 days.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Peaks {
    running_count: u32,
    vcpus: u32,
    memory_mb: u64,
}

/// Lists of the same length, for charts.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub(crate) struct Series {
    labels: Vec<String>,
    running: Vec<u32>,
    vcpus: Vec<u32>,
    memory_mb: Vec<u64>,
}

/// How many capsules ran over time, and with what.
pub(crate) async fn stats(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    mut query: Query,
) -> Result<Json<StatsAnswer>, ApiError> {
    let wanted = query.text("range").unwrap_or_else(|| "1h".to_owned());
    let (range, range_sec, bucket_sec) = STATS_RANGES
        .into_iter()
        .find(|(range, ..)| *range == wanted)
        .ok_or_else(|| query.fault("range", "must be of 5m, 1h, 6h, 24h, 30d"))?;
    let request = TeamStatsRequest { team_id: caller.team.to_string(), range_sec, bucket_sec };
    let stats = app.pool.get_team_stats(request, &scope.request_id).await?;
    Ok(Json(shaped(range, stats)))
}

fn shaped(range: &'static str, stats: TeamStats) -> StatsAnswer {
    let TeamStats { current, peaks, series } = stats;
    let (current, peaks) = (current.unwrap_or_default(), peaks.unwrap_or_default());
    let mut chart = Series::default();
    for TeamSample { at_ms, running, vcpus, memory_mb } in series {
        let Some(label) = instant(at_ms) else { continue };
        chart.labels.push(label);
        chart.running.push(running);
        chart.vcpus.push(vcpus);
        chart.memory_mb.push(memory_mb);
    }
    StatsAnswer {
        range,
        current: Current {
            running_count: current.running,
            vcpus_reserved: current.vcpus,
            memory_mb_reserved: current.memory_mb,
        },
        peaks: Peaks { running_count: peaks.running, vcpus: peaks.vcpus, memory_mb: peaks.memory_mb },
        series: chart,
    }
}

/// A team's use by day.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct UsageAnswer {
    from: String,
    to: String,
    points: Vec<UsagePointBody>,
}

/// One day, UTC.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct UsagePointBody {
    date: String,
    cpu_minutes: f64,
    ram_mb_minutes: f64,
}

/// Processor and memory minutes by day; the last 30 days when none are named.
pub(crate) async fn usage(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    query: Query,
) -> Result<Json<UsageAnswer>, ApiError> {
    let (from_day, to_day) = days(query, day_of(OffsetDateTime::now_utc().date()))?;
    let request = TeamUsageRequest { team_id: caller.team.to_string(), from_day, to_day };
    let usage = app.pool.get_team_usage(request, &scope.request_id).await?;
    let points = usage.days.into_iter().map(|day| UsagePointBody {
        date: date_of(day.day),
        cpu_minutes: day.cpu_minutes,
        ram_mb_minutes: day.memory_mb_minutes,
    });
    Ok(Json(UsageAnswer { from: date_of(from_day), to: date_of(to_day), points: points.collect() }))
}

fn days(mut query: Query, today: i32) -> Result<(i32, i32), ApiError> {
    let mut named = |name: &str| -> Result<Option<i32>, ApiError> {
        let Some(text) = query.text(name) else { return Ok(None) };
        match Date::parse(&text, &Iso8601::DATE) {
            Ok(date) => Ok(Some(day_of(date))),
            Err(_) => Err(query.fault(name, "must be a date such as 2027-01-31")),
        }
    };
    let to = named("to")?.unwrap_or(today);
    let from = named("from")?.unwrap_or_else(|| to.saturating_sub(USAGE_DAYS - 1));
    if from > to {
        return Err(ApiError::invalid("from: must not be after to"));
    }
    if to - from >= USAGE_DAYS_MAX {
        return Err(ApiError::invalid(format!("from: at most {USAGE_DAYS_MAX} days at once")));
    }
    Ok((from, to))
}

fn day_of(date: Date) -> i32 {
    date.to_julian_day() - EPOCH_DAY
}

fn date_of(day: i32) -> String {
    Date::from_julian_day(day.saturating_add(EPOCH_DAY)).map(|date| date.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_count_from_the_epoch() {
        assert_eq!((date_of(0).as_str(), date_of(20_575).as_str()), ("1970-01-01", "2026-05-02"));
        let of = |text: &str| days(Query::parse(text), 20_575);
        assert_eq!(of("").expect("fine"), (20_546, 20_575));
        assert_eq!(of("from=2026-05-01&to=2026-05-02").expect("fine"), (20_574, 20_575));
        for wrong in ["from=2026-05-03", "from=yesterday", "from=2025-01-01", "to=2026-13-01"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_vmm_that_works_for_itself_is_not_a_guest_over_its_limit() {
        let point = UsagePoint {
            cpu_pct: 130.0,
            at_ms: 1_500,
            private_bytes: 1,
            shared_bytes: 2,
            ..Default::default()
        };
        let point = MetricPoint::from(point);
        assert_eq!((point.cpu_pct, point.timestamp_unix, point.mem_bytes), (100.0, 1, 3));
    }
}
