//! Wire messages to our types: checked here, and the field named.

use crate::{
    capsule::{
        Labels,
        create::Order,
        fork::{COPIES_MAX, ForkOrder},
        lifecycle::Wishes,
        locate::Visitor,
        once::Key,
        page::{Cursor, Filter, Wanted},
        quota::Limits,
        settings::{self, Network, Settings, TimeoutAction, Timeouts},
        state::State,
    },
    error::Refused,
    pool::take::Want,
    snapshot::shelf::SnapshotOrder,
    template::fit::Size,
};
use hearth_proto::{
    id::{CapsuleId, TeamId},
    wire::{agent::CapsuleState, pool},
};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

pub(super) fn capsule_id(text: &str) -> Result<CapsuleId, Refused> {
    text.parse().map_err(|error| Refused::Invalid(format!("capsule_id: {error}")))
}

pub(super) fn team_id(text: &str) -> Result<TeamId, Refused> {
    text.parse().map_err(|error| Refused::Invalid(format!("team_id: {error}")))
}

pub(super) fn team_and_capsule(team: &str, capsule: &str) -> Result<(TeamId, CapsuleId), Refused> {
    Ok((team_id(team)?, capsule_id(capsule)?))
}

pub(super) fn want(request: pool::TakeRequest) -> Want {
    Want {
        template: request.template,
        size: Size { vcpus: 0, memory_mb: request.memory_mb },
        language: request.language,
        lease: Duration::from_millis(request.lease_ms),
    }
}

fn timeout_sec(timeout_sec: u64) -> Result<u64, Refused> {
    // The agent counts in milliseconds, the row in a signed number.
    if timeout_sec > i64::MAX as u64 / 1000 {
        return Err(Refused::Invalid("timeout_sec: too large".to_owned()));
    }
    Ok(timeout_sec)
}

fn limits(limits: Option<pool::TeamLimits>) -> Limits {
    limits.map_or_else(Limits::default, |limits| Limits {
        capsules: limits.capsules,
        memory_mb: limits.memory_mb,
    })
}

/// Each entry as one text, in an order of its own.
fn entries(map: &HashMap<String, String>) -> Vec<u8> {
    let sorted: BTreeMap<&String, &String> = map.iter().collect();
    let mut bytes = Vec::new();
    for (key, value) in sorted {
        for text in [key, value] {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// What makes a creation another one; the key itself and the team's limits do not.
fn create_key(team: TeamId, request: &pool::CreateCapsuleRequest) -> Result<Option<Key>, Refused> {
    let numbers: Vec<u8> = [
        u64::from(request.vcpus),
        request.memory_mb,
        request.timeout_sec,
        request.disk_mb,
        u64::from(request.timeout_action.unsigned_abs()),
        u64::from(request.auto_resume),
    ]
    .into_iter()
    .chain(request.public_ports.iter().map(|port| u64::from(*port)))
    .flat_map(u64::to_le_bytes)
    .collect();
    let network = format!("{:?}", request.network.clone().map(Network::from));
    let (env, metadata) = (entries(&request.env), entries(&request.metadata));
    let parts: [&[u8]; 7] = [
        b"create",
        request.template.as_bytes(),
        request.name.as_bytes(),
        &numbers,
        network.as_bytes(),
        &env,
        &metadata,
    ];
    Key::new(team, request.idempotency_key.clone(), parts)
}

pub(super) fn order(request: pool::CreateCapsuleRequest) -> Result<Order, Refused> {
    let team = team_id(&request.team_id)?;
    let key = create_key(team, &request)?;
    let settings = Settings {
        timeouts: Timeouts {
            idle_sec: timeout_sec(request.timeout_sec)?,
            action: TimeoutAction::from_wire(request.timeout_action)?,
        },
        auto_resume: request.auto_resume,
        public_ports: settings::public_ports(&request.public_ports)?,
        network: request.network.map(Network::from),
    };
    Ok(Order {
        team,
        template: request.template,
        size: Size { vcpus: request.vcpus, memory_mb: request.memory_mb },
        disk_mb: request.disk_mb,
        env: request.env,
        settings,
        labels: Labels { name: request.name, metadata: request.metadata.into_iter().collect() },
        limits: limits(request.limits),
        key,
    })
}

pub(super) fn wishes(request: pool::UpdateCapsuleRequest) -> Result<Wishes, Refused> {
    let ports = request.public_ports.map(|ports| settings::public_ports(&ports.ports)).transpose()?;
    Ok(Wishes {
        timeout_sec: request.timeout_sec.map(timeout_sec).transpose()?,
        timeout_action: request.timeout_action.map(TimeoutAction::from_wire).transpose()?,
        disk_mb: request.disk_mb,
        auto_resume: request.auto_resume,
        name: request.name,
        metadata: request.metadata.map(|metadata| metadata.entries.into_iter().collect()),
        public_ports: ports,
    })
}

pub(super) fn fork(request: pool::ForkCapsuleRequest) -> Result<ForkOrder, Refused> {
    let (team, source) = team_and_capsule(&request.team_id, &request.capsule_id)?;
    if !(1..=COPIES_MAX).contains(&request.count) {
        return Err(Refused::Invalid(format!("count: 1 to {COPIES_MAX}, not {}", request.count)));
    }
    let parts: [&[u8]; 3] = [b"fork", request.capsule_id.as_bytes(), &request.count.to_le_bytes()];
    let key = Key::new(team, request.idempotency_key.clone(), parts)?;
    Ok(ForkOrder { team, source, count: request.count, limits: limits(request.limits), key })
}

pub(super) fn snapshot(request: pool::CreateTemplateRequest) -> Result<SnapshotOrder, Refused> {
    let (team, capsule) = team_and_capsule(&request.team_id, &request.capsule_id)?;
    let overwrite: &[u8] = if request.overwrite { b"overwrite" } else { b"" };
    let parts = [b"snapshot", request.capsule_id.as_bytes(), request.name.as_bytes(), overwrite];
    let key = Key::new(team, request.idempotency_key.clone(), parts)?;
    Ok(SnapshotOrder { team, capsule, name: request.name, overwrite: request.overwrite, key })
}

pub(super) fn visitor(request: &pool::LocatePortRequest) -> Result<Visitor, Refused> {
    let team = if request.team_id.is_empty() { None } else { Some(team_id(&request.team_id)?) };
    Ok(Visitor { team, access_token: request.access_token.clone() })
}

pub(super) fn filter(request: pool::ListCapsuleRecordsRequest) -> Result<Filter, Refused> {
    let states = request.states.iter().map(|state| wanted(*state)).collect::<Result<Vec<_>, _>>()?;
    Ok(Filter {
        states,
        metadata: request.metadata.into_iter().collect(),
        limit: usize::try_from(request.limit).unwrap_or(usize::MAX),
        after: Cursor::parse(&request.cursor)?,
    })
}

fn wanted(value: i32) -> Result<Wanted, Refused> {
    match CapsuleState::try_from(value) {
        Ok(CapsuleState::Unspecified) => Ok(Wanted::At(State::Missing)),
        Ok(CapsuleState::Starting) => Ok(Wanted::At(State::Starting)),
        Ok(CapsuleState::Running) => Ok(Wanted::At(State::Running)),
        Ok(CapsuleState::Paused) => Ok(Wanted::At(State::Paused)),
        Ok(CapsuleState::Stopping) => Ok(Wanted::At(State::Stopping)),
        Ok(CapsuleState::Stopped) => Ok(Wanted::At(State::Stopped)),
        Ok(CapsuleState::Failed) => Ok(Wanted::At(State::Failed)),
        Ok(CapsuleState::Pausing) => Ok(Wanted::Pausing),
        Ok(CapsuleState::Resuming) => Ok(Wanted::Resuming),
        Ok(CapsuleState::Snapshotting) => Ok(Wanted::Snapshotting),
        Ok(CapsuleState::Parked) => Err(Refused::Invalid("states: no user's capsule is parked".to_owned())),
        Err(_) => Err(Refused::Invalid(format!("states: unknown value {value}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create() -> pool::CreateCapsuleRequest {
        pool::CreateCapsuleRequest {
            team_id: TeamId::new().to_string(),
            idempotency_key: "k".to_owned(),
            env: (0..20).map(|number| (number.to_string(), "x".to_owned())).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_same_request_has_the_same_digest_whatever_the_order_of_its_maps() {
        let request = create();
        let again = pool::CreateCapsuleRequest {
            env: request.env.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            limits: Some(pool::TeamLimits { capsules: 3, memory_mb: 0 }),
            ..request.clone()
        };
        let other = pool::CreateCapsuleRequest { auto_resume: true, ..request.clone() };
        let digest = |request| order(request).unwrap().key.unwrap().digest;
        let first = digest(request);
        assert_eq!(first, digest(again));
        assert_ne!(first, digest(other));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        for (request, field) in [
            (pool::CreateCapsuleRequest { timeout_sec: u64::MAX, ..create() }, "timeout_sec: "),
            (pool::CreateCapsuleRequest { timeout_action: 9, ..create() }, "timeout_action: "),
            (pool::CreateCapsuleRequest { public_ports: vec![0], ..create() }, "public_ports: "),
            (
                pool::CreateCapsuleRequest { idempotency_key: "x".repeat(300), ..create() },
                "idempotency_key: ",
            ),
            (pool::CreateCapsuleRequest { team_id: String::new(), ..create() }, "team_id: "),
        ] {
            let refused = order(request).unwrap_err();
            assert!(refused.to_string().starts_with(field), "{refused}");
        }
    }
}
