//! `/v1/capsules`: the compatible lifecycle.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    json::{body::JsonBody, fields::Fields, rules},
    middleware::Scope,
    ops::capsules::{self, NewCapsule},
    v1::CapsulePath,
};
use axum::{Extension, Json, extract::State};
use hearth_proto::wire::{agent::CapsuleState, pool::CapsuleRecord};
use http::StatusCode;
use serde::Serialize;
use std::collections::BTreeMap;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Fields of `create` that are in the API and not in this version.
const NOT_YET: [&str; 5] = ["disk_mb", "timeout_action", "auto_resume", "public_ports", "session"];

/// The public words for a capsule's state: a strict enum in clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Starting,
    Running,
    Paused,
    Stopped,
    Missing,
    Error,
}

impl Status {
    fn of(state: CapsuleState) -> Self {
        match state {
            CapsuleState::Starting | CapsuleState::Parked | CapsuleState::Resuming => Self::Starting,
            CapsuleState::Running | CapsuleState::Pausing | CapsuleState::Snapshotting => Self::Running,
            CapsuleState::Paused => Self::Paused,
            CapsuleState::Stopping | CapsuleState::Stopped => Self::Stopped,
            CapsuleState::Failed => Self::Error,
            CapsuleState::Unspecified => Self::Missing,
        }
    }
}

/// A capsule as callers see it.
#[derive(Debug, Serialize)]
pub(crate) struct CapsuleBody {
    id: String,
    status: Status,
    template: String,
    vcpus: u32,
    memory_mb: u64,
    timeout_sec: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    created_at: Option<String>,
    last_updated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_active_at: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl From<CapsuleRecord> for CapsuleBody {
    fn from(record: CapsuleRecord) -> Self {
        Self {
            status: Status::of(record.state()),
            id: record.capsule_id,
            template: record.template,
            vcpus: record.vcpus,
            memory_mb: record.memory_mb,
            timeout_sec: record.timeout_sec,
            name: record.name,
            created_at: instant(record.created_at_ms),
            last_updated: instant(record.last_updated_ms),
            started_at: instant(record.started_at_ms),
            last_active_at: instant(record.last_active_at_ms),
            metadata: record.metadata.into_iter().collect(),
        }
    }
}

/// Creates a capsule; it runs when the answer comes.
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    body: JsonBody,
) -> Result<(StatusCode, Json<CapsuleBody>), ApiError> {
    let capsule = read(&mut body.fields_or_none()?)?;
    let record = capsules::create(&app, &scope, caller, capsule).await?;
    Ok((StatusCode::CREATED, Json(record.into())))
}

/// The caller's capsules, newest first.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
) -> Result<Json<Vec<CapsuleBody>>, ApiError> {
    let records = capsules::list(&app, &scope, caller).await?;
    Ok(Json(records.into_iter().map(CapsuleBody::from).collect()))
}

/// One capsule, in any state.
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
) -> Result<Json<CapsuleBody>, ApiError> {
    Ok(Json(capsules::get(&app, &scope, caller, capsule).await?.into()))
}

/// Destroys a capsule, or confirms that it is destroyed.
pub(crate) async fn destroy(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
) -> Result<StatusCode, ApiError> {
    capsules::destroy(&app, &scope, caller, capsule).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The compatible API takes numbers of 0 and less as "the default".
fn read(fields: &mut Fields) -> Result<NewCapsule, ApiError> {
    rules::not_yet(fields, &NOT_YET)?;
    rules::network(fields)?;
    Ok(NewCapsule {
        template: rules::template(fields)?,
        vcpus: default_or(fields, "vcpus", 1_024)?.try_into().unwrap_or(0),
        memory_mb: default_or(fields, "memory_mb", 16 << 20)?,
        timeout_sec: default_or(fields, "timeout_sec", 365 * 86_400)?,
        env: rules::env(fields, "env")?,
        metadata: rules::metadata(fields)?,
        name: rules::display_name(fields)?,
    })
}

fn default_or(fields: &mut Fields, name: &str, max: u64) -> Result<u64, ApiError> {
    match fields.integer(name)?.map(|number| u64::try_from(number).unwrap_or(0)) {
        None => Ok(0),
        Some(number) if number <= max => Ok(number),
        Some(number) => Err(fields.fault(name, format!("must be at most {max}, got {number}"))),
    }
}

/// RFC 3339 in UTC and whole seconds; 0 stands for an instant that has not come.
fn instant(milliseconds: i64) -> Option<String> {
    if milliseconds <= 0 {
        return None;
    }
    OffsetDateTime::from_unix_timestamp(milliseconds / 1_000).ok()?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capsule_reads_as_the_compatible_api_says() {
        let record = CapsuleRecord {
            capsule_id: "cl-0".to_owned(),
            template: "code".to_owned(),
            state: CapsuleState::Running.into(),
            vcpus: 1,
            memory_mb: 512,
            created_at_ms: 1_777_716_000_999,
            last_updated_ms: 1_777_716_000_999,
            ..CapsuleRecord::default()
        };
        let body = serde_json::to_value(CapsuleBody::from(record)).expect("JSON");
        let expected = serde_json::json!({
            "id": "cl-0", "status": "running", "template": "code", "vcpus": 1, "memory_mb": 512, "timeout_sec": 0,
            "created_at": "2026-05-02T10:00:00Z", "last_updated": "2026-05-02T10:00:00Z",
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn every_state_has_a_public_word() {
        let words = [
            (CapsuleState::Starting, "starting"),
            (CapsuleState::Parked, "starting"),
            (CapsuleState::Running, "running"),
            (CapsuleState::Pausing, "running"),
            (CapsuleState::Paused, "paused"),
            (CapsuleState::Resuming, "starting"),
            (CapsuleState::Snapshotting, "running"),
            (CapsuleState::Stopping, "stopped"),
            (CapsuleState::Stopped, "stopped"),
            (CapsuleState::Failed, "error"),
            (CapsuleState::Unspecified, "missing"),
        ];
        for (state, word) in words {
            assert_eq!(serde_json::to_value(Status::of(state)).expect("JSON"), word);
        }
    }

    #[test]
    fn requests_are_checked_field_by_field() {
        let fault = |body: &str| {
            let mut fields = Fields::parse(body.as_bytes()).expect("an object");
            read(&mut fields).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(fault("{}"), Ok(()));
        assert_eq!(
            fault(r#"{"vcpus":0,"memory_mb":-1,"timeout_sec":0,"template":"minimal","unknown":{}}"#),
            Ok(())
        );
        for (body, field) in [
            (r#"{"vcpus":"2"}"#, "vcpus: expected a whole number"),
            (r#"{"vcpus":5000}"#, "vcpus: must be at most 1024"),
            (r#"{"template":"no/path"}"#, "template: must be"),
            (r#"{"template":"-x"}"#, "template: must be"),
            (r#"{"metadata":{"k":1}}"#, "metadata.k: expected a string"),
            (r#"{"env":{"A=B":"1"}}"#, "env: `A=B` is not a usable variable name"),
            (r#"{"env":{"A":"\u0000"}}"#, "env.A: must not contain NUL"),
            (r#"{"auto_resume":true}"#, "auto_resume: not available yet"),
            (r#"{"network":"internet"}"#, "network: only \"none\""),
            (r#"{"name":7}"#, "name: expected a string"),
        ] {
            let message = fault(body).expect_err(body);
            assert!(message.starts_with(field), "{body}: {message}");
        }
    }
}
