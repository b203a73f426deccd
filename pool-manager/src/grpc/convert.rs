//! Wire messages to and from our types. What comes in is checked here, and the field named.

use crate::{
    capsule::{Labels, Record, create::Order, state::State},
    error::Refused,
    pool::{
        Stock,
        take::{Taken, Want},
    },
    template::fit::Size,
};
use hearth_proto::{
    id::{CapsuleId, TeamId},
    wire::{agent::CapsuleState, pool},
};
use std::time::Duration;
use time::OffsetDateTime;

pub(super) fn capsule_id(text: &str) -> Result<CapsuleId, Refused> {
    text.parse().map_err(|error| Refused::Invalid(format!("capsule_id: {error}")))
}

pub(super) fn team_id(text: &str) -> Result<TeamId, Refused> {
    text.parse().map_err(|error| Refused::Invalid(format!("team_id: {error}")))
}

pub(super) fn want(request: pool::TakeRequest) -> Want {
    Want {
        template: request.template,
        size: Size { vcpus: 0, memory_mb: request.memory_mb },
        language: request.language,
        lease: Duration::from_millis(request.lease_ms),
    }
}

pub(super) fn order(request: pool::CreateCapsuleRequest) -> Result<Order, Refused> {
    if i64::try_from(request.timeout_sec).is_err() {
        return Err(Refused::Invalid("timeout_sec: too large".to_owned()));
    }
    Ok(Order {
        team: team_id(&request.team_id)?,
        template: request.template,
        size: Size { vcpus: request.vcpus, memory_mb: request.memory_mb },
        timeout_sec: request.timeout_sec,
        env: request.env,
        labels: Labels { name: request.name, metadata: request.metadata.into_iter().collect() },
    })
}

pub(super) fn taken(taken: &Taken) -> pool::TakeReply {
    pool::TakeReply {
        capsule_id: taken.id.to_string(),
        host: Some(host(&taken.host_id, &taken.endpoint)),
        source: taken.source.as_str().to_owned(),
        claim_us: u64::try_from(taken.after.as_micros()).unwrap_or(u64::MAX),
    }
}

pub(super) fn host(host_id: &str, endpoint: &str) -> pool::HostRef {
    pool::HostRef { host_id: host_id.to_owned(), endpoint: endpoint.to_owned() }
}

/// A missing capsule has no state of the agent's: unspecified, and the reason begins with `missing`.
pub(super) fn record(record: Record) -> pool::CapsuleRecord {
    let (state, reason) = match record.state {
        State::Starting => (CapsuleState::Starting, record.reason),
        State::Running => (CapsuleState::Running, record.reason),
        State::Paused => (CapsuleState::Paused, record.reason),
        State::Stopping => (CapsuleState::Stopping, record.reason),
        State::Stopped => (CapsuleState::Stopped, record.reason),
        State::Failed => (CapsuleState::Failed, record.reason),
        State::Missing => (CapsuleState::Unspecified, format!("missing: {}", record.reason)),
    };
    pool::CapsuleRecord {
        capsule_id: record.id.to_string(),
        team_id: record.team.to_string(),
        template: record.template,
        state: state.into(),
        reason,
        vcpus: record.vcpus,
        memory_mb: record.memory_mb,
        timeout_sec: record.timeout_sec,
        metadata: record.labels.metadata.into_iter().collect(),
        name: record.labels.name,
        created_at_ms: milliseconds(record.times.created),
        started_at_ms: record.times.started.map_or(0, milliseconds),
        last_active_at_ms: record.times.last_active.map_or(0, milliseconds),
        last_updated_ms: milliseconds(record.times.updated),
        ..Default::default()
    }
}

fn milliseconds(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

pub(super) fn stock(template: &str, stock: &Stock) -> pool::PoolState {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    pool::PoolState {
        template: template.to_owned(),
        target: count(stock.target),
        parked: count(stock.parked),
        refilling: count(stock.refilling),
        hits: stock.hits,
        misses: stock.misses,
    }
}
