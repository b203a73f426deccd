//! A capsule's way from state to state: pause, resume, ping, fork, rollback.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    idempotency,
    json::{body::JsonBody, rules},
    middleware::Scope,
    ops::capsules::{self, Change},
    v1::{CapsulePath, capsule_body::CapsuleBody},
};
use axum::{Extension, Json, extract::State};
use http::{HeaderMap, StatusCode};
use serde::Serialize;

/// The agent makes no more at once.
const COPIES_MAX: u64 = 64;

/// Puts a capsule on disk; it is there when the answer comes.
pub(crate) async fn pause(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
) -> Result<Json<CapsuleBody>, ApiError> {
    Ok(Json(capsules::change(&app, &scope, caller, capsule, Change::Pause).await?.into()))
}

/// Brings a paused capsule back; it runs when the answer comes.
pub(crate) async fn resume(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
) -> Result<Json<CapsuleBody>, ApiError> {
    Ok(Json(capsules::change(&app, &scope, caller, capsule, Change::Resume).await?.into()))
}

/// Counts as use of a running capsule.
pub(crate) async fn ping(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
) -> Result<StatusCode, ApiError> {
    capsules::change(&app, &scope, caller, capsule, Change::Ping).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The copies of a fork.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ForkAnswer {
    capsules: Vec<CapsuleBody>,
}

/// Makes running copies; all of them run when the answer comes, or there are none.
pub(crate) async fn fork(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<(StatusCode, Json<ForkAnswer>), ApiError> {
    let count = body.fields_or_none()?.number("count", 1, COPIES_MAX)?.unwrap_or(1);
    let key = idempotency::key_text(&headers)?;
    let count = u32::try_from(count).unwrap_or(1);
    let records = capsules::fork(&app, &scope, caller, capsule, count, key).await?;
    let answer = ForkAnswer { capsules: records.into_iter().map(CapsuleBody::from).collect() };
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Makes a capsule what one of its own snapshots was.
pub(crate) async fn rollback(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    body: JsonBody,
) -> Result<Json<CapsuleBody>, ApiError> {
    let mut fields = body.fields()?;
    let snapshot = rules::template_name(&mut fields, "snapshot")?
        .ok_or_else(|| fields.fault("snapshot", "required: the name of a snapshot of this capsule"))?;
    Ok(Json(capsules::rollback(&app, &scope, caller, capsule, snapshot).await?.into()))
}
