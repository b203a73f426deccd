//! Capsules that live until they are destroyed.

use crate::{
    app::App, auth::Caller, error::ApiError, middleware::Scope, ops::lease::unknown_template,
    upstream::UpstreamError,
};
use hearth_proto::{
    error::ErrorCode,
    id::CapsuleId,
    wire::{
        agent::CapsuleState,
        pool::{CapsuleRecord, CreateCapsuleRequest},
    },
};
use std::collections::HashMap;
use tonic::Code;
use tracing::Instrument;

/// A checked request for a capsule.
#[derive(Debug, Clone)]
pub(crate) struct NewCapsule {
    /// Empty: the default template.
    pub(crate) template: String,
    /// 0: the template's own.
    pub(crate) vcpus: u32,
    /// 0: the template's own.
    pub(crate) memory_mb: u64,
    /// 0: no inactivity timeout.
    pub(crate) timeout_sec: u64,
    pub(crate) env: HashMap<String, String>,
    pub(crate) metadata: HashMap<String, String>,
    pub(crate) name: String,
}

/// Creates a capsule; it runs when this returns. In a task of its own: when the caller goes away in the middle, the
/// record and the capsule still agree.
pub(crate) async fn create(
    app: &App,
    scope: &Scope,
    caller: Caller,
    capsule: NewCapsule,
) -> Result<CapsuleRecord, ApiError> {
    let template = capsule.template.clone();
    let create = CreateCapsuleRequest {
        team_id: caller.team.to_string(),
        template: capsule.template,
        vcpus: capsule.vcpus,
        memory_mb: capsule.memory_mb,
        timeout_sec: capsule.timeout_sec,
        env: capsule.env,
        metadata: capsule.metadata,
        name: capsule.name,
        ..Default::default()
    };
    let task = {
        let (pool, request_id) = (app.pool.clone(), scope.request_id.clone());
        async move { pool.create(create, &request_id).await }
    };
    match app.tasks.spawn(task.in_current_span()).await {
        Ok(Ok(record)) => Ok(record),
        Ok(Err(error)) if error.code() == Some(Code::NotFound) => Err(unknown_template(&template)),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(ApiError::internal(error)),
    }
}

/// One capsule of the caller, in any state.
pub(crate) async fn get(
    app: &App,
    scope: &Scope,
    caller: Caller,
    capsule: CapsuleId,
) -> Result<CapsuleRecord, ApiError> {
    app.pool.get(caller.team, capsule, &scope.request_id).await.map_err(unknown_capsule)
}

/// The caller's capsules, newest first, without those that ended.
pub(crate) async fn list(app: &App, scope: &Scope, caller: Caller) -> Result<Vec<CapsuleRecord>, ApiError> {
    let mut records = app.pool.list(caller.team, &scope.request_id).await?;
    records.retain(|record| !has_ended(record.state()));
    records.sort_by_key(|record| std::cmp::Reverse(record.created_at_ms));
    Ok(records)
}

/// Destroys a capsule of the caller; one that has ended is fine too.
pub(crate) async fn destroy(
    app: &App,
    scope: &Scope,
    caller: Caller,
    capsule: CapsuleId,
) -> Result<(), ApiError> {
    app.pool.destroy(caller.team, capsule, &scope.request_id).await.map_err(unknown_capsule)
}

/// pool-manager's NOT_FOUND, in words that do not depend on it.
pub(crate) fn unknown_capsule(error: UpstreamError) -> ApiError {
    if error.code() == Some(Code::NotFound) {
        ApiError::new(ErrorCode::NotFound, "there is no such capsule")
    } else {
        error.into()
    }
}

fn has_ended(state: CapsuleState) -> bool {
    match state {
        CapsuleState::Stopping | CapsuleState::Stopped | CapsuleState::Failed => true,
        CapsuleState::Unspecified
        | CapsuleState::Starting
        | CapsuleState::Parked
        | CapsuleState::Running
        | CapsuleState::Pausing
        | CapsuleState::Paused
        | CapsuleState::Resuming
        | CapsuleState::Snapshotting => false,
    }
}
