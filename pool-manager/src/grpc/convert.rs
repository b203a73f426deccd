//! Wire messages from our types.

use crate::{
    capsule::{Record, events::Event, locate::Place, page::Wanted, state::State},
    fleet::HostView,
    pool::{Stock, take::Taken},
    snapshot::Snapshot,
    template::Template,
    usage::{Day, Sample, stats::Stats},
};
use hearth_proto::wire::{agent::CapsuleState, pool};
use time::OffsetDateTime;

pub(super) fn taken(taken: &Taken) -> pool::TakeReply {
    pool::TakeReply {
        capsule_id: taken.id.to_string(),
        host: Some(host(&taken.host_id, &taken.endpoint)),
        source: taken.source.as_str().to_owned(),
        claim_us: u64::try_from(taken.after.as_micros()).unwrap_or(u64::MAX),
    }
}

fn host(host_id: &str, endpoint: &str) -> pool::HostRef {
    pool::HostRef { host_id: host_id.to_owned(), endpoint: endpoint.to_owned() }
}

pub(super) fn located(place: &Place) -> pool::LocateReply {
    pool::LocateReply { host: Some(host(&place.host_id, &place.endpoint)) }
}

/// A state as callers see it. A missing capsule has none of the agent's: unspecified.
fn state(wanted: Wanted) -> CapsuleState {
    match wanted {
        Wanted::At(State::Starting) => CapsuleState::Starting,
        Wanted::At(State::Running) => CapsuleState::Running,
        Wanted::At(State::Paused) => CapsuleState::Paused,
        Wanted::At(State::Stopping) => CapsuleState::Stopping,
        Wanted::At(State::Stopped) => CapsuleState::Stopped,
        Wanted::At(State::Failed) => CapsuleState::Failed,
        Wanted::At(State::Missing) => CapsuleState::Unspecified,
        Wanted::Pausing => CapsuleState::Pausing,
        Wanted::Resuming => CapsuleState::Resuming,
        Wanted::Snapshotting => CapsuleState::Snapshotting,
    }
}

/// The reason of a missing capsule begins with `missing`.
pub(super) fn record(record: Record) -> pool::CapsuleRecord {
    let state = state(record.shown());
    let reason = match record.state {
        State::Missing => format!("missing: {}", record.reason),
        State::Starting
        | State::Running
        | State::Paused
        | State::Stopping
        | State::Stopped
        | State::Failed => record.reason,
    };
    let settings = record.settings;
    pool::CapsuleRecord {
        capsule_id: record.id.to_string(),
        team_id: record.team.to_string(),
        template: record.template,
        state: state.into(),
        reason,
        vcpus: record.vcpus,
        memory_mb: record.memory_mb,
        timeout_sec: settings.timeouts.idle_sec,
        metadata: record.labels.metadata.into_iter().collect(),
        name: record.labels.name,
        created_at_ms: milliseconds(record.times.created),
        started_at_ms: record.times.started.map_or(0, milliseconds),
        last_active_at_ms: record.times.last_active.map_or(0, milliseconds),
        last_updated_ms: milliseconds(record.times.updated),
        source: String::new(),
        disk_mb: record.disk.size_mb,
        disk_used_mb: record.disk.used_mb,
        network: settings.network.map(Into::into),
        timeout_action: settings.timeouts.action.wire().into(),
        auto_resume: settings.auto_resume,
        public_ports: settings.public_ports.into_iter().map(u32::from).collect(),
        host_id: record.host_id,
        access_token: record.token.reveal().to_owned(),
    }
}

pub(super) fn event(event: Event) -> pool::CapsuleEvent {
    pool::CapsuleEvent {
        event: event.name.to_owned(),
        capsule: event.capsule.map(record),
        template: event.template,
        at_ms: milliseconds(event.at),
        reason: event.reason,
    }
}

pub(super) fn milliseconds(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

pub(super) fn stock(template: &str, stock: &Stock) -> pool::PoolState {
    pool::PoolState {
        template: template.to_owned(),
        target: count(stock.target),
        parked: count(stock.parked),
        refilling: count(stock.refilling),
        hits: stock.hits,
        misses: stock.misses,
    }
}

pub(super) fn snapshot(snapshot: Snapshot) -> pool::TemplateRecord {
    pool::TemplateRecord {
        name: snapshot.name,
        snapshot: true,
        platform: false,
        vcpus: snapshot.vcpus,
        memory_mb: snapshot.memory_mb,
        size_bytes: snapshot.size_bytes,
        created_at_ms: milliseconds(snapshot.created),
        capsule_id: snapshot.capsule.to_string(),
    }
}

pub(super) fn template(template: Template) -> pool::TemplateRecord {
    pool::TemplateRecord {
        name: template.name,
        snapshot: false,
        platform: true,
        vcpus: template.vcpus,
        memory_mb: template.memory_mb,
        size_bytes: template.size_bytes,
        created_at_ms: template.created_at_ms,
        capsule_id: String::new(),
    }
}

fn sample(sample: Sample) -> pool::TeamSample {
    pool::TeamSample {
        at_ms: sample.at_ms,
        running: sample.running,
        vcpus: sample.vcpus,
        memory_mb: sample.memory_mb,
    }
}

pub(super) fn stats(stats: Stats) -> pool::TeamStats {
    pool::TeamStats {
        current: Some(sample(stats.current)),
        peaks: Some(sample(stats.peaks)),
        series: stats.series.into_iter().map(sample).collect(),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a day of a team is far below 2^52 microseconds and MiB milliseconds"
)]
pub(super) fn day(day: Day) -> pool::UsageDay {
    const MINUTE_US: f64 = 60e6;
    const MINUTE_MS: f64 = 60e3;
    pool::UsageDay {
        day: day.day,
        cpu_minutes: day.cpu_us as f64 / MINUTE_US,
        memory_mb_minutes: day.memory_mb_ms as f64 / MINUTE_MS,
    }
}

pub(super) fn host_record(view: HostView) -> pool::HostRecord {
    pool::HostRecord {
        host_id: view.id,
        status: view.status,
        engine: view.engine,
        accelerator: view.accelerator,
        cpus: view.cpus,
        memory_mb: view.memory_mb,
        registered_at_ms: view.registered.map_or(0, milliseconds),
        last_seen_ms: view.last_seen.map_or(0, milliseconds),
        capsules: view.capsules,
    }
}
