//! Capsules that live until they are destroyed: their records, and the way from one state to the next.

use crate::{
    app::App, auth::Caller, error::ApiError, middleware::Scope, ops::lease::unknown_template,
    upstream::UpstreamError,
};
use hearth_proto::{
    error::ErrorCode,
    id::CapsuleId,
    wire::{
        agent::{CapsuleState, NetworkPolicy, TimeoutAction},
        pool::{
            CapsuleRecord, CapsuleRef, CreateCapsuleRequest, ForkCapsuleRequest, ListCapsuleRecordsReply,
            ListCapsuleRecordsRequest, RollbackCapsuleRequest, TeamLimits, UpdateCapsuleRequest,
        },
    },
};
use std::{collections::HashMap, future::Future};
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
    /// 0: the template's own.
    pub(crate) disk_mb: u64,
    /// 0: no inactivity timeout.
    pub(crate) timeout_sec: u64,
    pub(crate) timeout_action: TimeoutAction,
    pub(crate) auto_resume: bool,
    pub(crate) network: NetworkPolicy,
    pub(crate) public_ports: Vec<u32>,
    pub(crate) env: HashMap<String, String>,
    pub(crate) metadata: HashMap<String, String>,
    pub(crate) name: String,
    /// Empty: none.
    pub(crate) idempotency_key: String,
}

/// Which capsules to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) states: Vec<CapsuleState>,
    pub(crate) metadata: HashMap<String, String>,
    pub(crate) limit: u32,
    pub(crate) cursor: String,
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
        disk_mb: capsule.disk_mb,
        network: Some(capsule.network),
        timeout_action: capsule.timeout_action.into(),
        auto_resume: capsule.auto_resume,
        public_ports: capsule.public_ports,
        idempotency_key: capsule.idempotency_key,
        limits: Some(limits(app)),
    };
    let made = to_the_end(app, scope, |app, id| async move { app.pool.create(create, &id).await }).await?;
    made.map_err(|error| match error.code() {
        Some(Code::NotFound) => unknown_template(&template),
        _ => error.into(),
    })
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

/// The caller's capsules, newest first; without a filter by state, those that have not ended.
pub(crate) async fn list(
    app: &App,
    scope: &Scope,
    caller: Caller,
    filter: Filter,
) -> Result<ListCapsuleRecordsReply, ApiError> {
    let all = filter.states.is_empty();
    let request = ListCapsuleRecordsRequest {
        team_id: caller.team.to_string(),
        states: filter.states.into_iter().map(Into::into).collect(),
        metadata: filter.metadata,
        limit: filter.limit,
        cursor: filter.cursor,
    };
    let mut page = app.pool.list_capsules(request, &scope.request_id).await?;
    if all {
        page.capsules.retain(|record| !has_ended(record.state()));
    }
    Ok(page)
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

/// A change of state that is asked for without anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Pause,
    Resume,
    Ping,
}

/// Pauses, resumes or pings a capsule of the caller, and waits until it is done.
pub(crate) async fn change(
    app: &App,
    scope: &Scope,
    caller: Caller,
    capsule: CapsuleId,
    change: Change,
) -> Result<CapsuleRecord, ApiError> {
    let record = app.pool.get(caller.team, capsule, &scope.request_id).await.map_err(unknown_capsule)?;
    refuse_what_is_so_already(change, record.state())?;
    let capsule = reference(caller, capsule);
    let changed = to_the_end(app, scope, |app, id| async move {
        match change {
            Change::Pause => app.pool.pause_capsule(capsule, &id).await,
            Change::Resume => app.pool.resume_capsule(capsule, &id).await,
            Change::Ping => app.pool.ping_capsule(capsule, &id).await,
        }
    });
    changed.await?.map_err(unknown_capsule)
}

/// (pure) The compatible API refuses to pause what is paused and to resume what runs. One that is on the way there is
/// joined, which pool-manager does.
fn refuse_what_is_so_already(change: Change, state: CapsuleState) -> Result<(), ApiError> {
    let message = match (change, state) {
        (Change::Pause, CapsuleState::Paused) => "the capsule is not running (status: paused)",
        (Change::Resume, CapsuleState::Running) => "the capsule is not paused (status: running)",
        _ => return Ok(()),
    };
    Err(ApiError::new(ErrorCode::InvalidState, message))
}

/// Changes settings of a capsule of the caller.
pub(crate) async fn update(
    app: &App,
    scope: &Scope,
    update: UpdateCapsuleRequest,
) -> Result<CapsuleRecord, ApiError> {
    let updated = to_the_end(app, scope, |app, id| async move { app.pool.update_capsule(update, &id).await });
    updated.await?.map_err(unknown_capsule)
}

/// Makes running copies of a capsule of the caller: all of them, or none.
pub(crate) async fn fork(
    app: &App,
    scope: &Scope,
    caller: Caller,
    capsule: CapsuleId,
    count: u32,
    idempotency_key: String,
) -> Result<Vec<CapsuleRecord>, ApiError> {
    let CapsuleRef { team_id, capsule_id } = reference(caller, capsule);
    let request =
        ForkCapsuleRequest { team_id, capsule_id, count, idempotency_key, limits: Some(limits(app)) };
    let forked = to_the_end(app, scope, |app, id| async move { app.pool.fork_capsule(request, &id).await });
    forked.await?.map(|reply| reply.capsules).map_err(unknown_capsule)
}

/// Makes a capsule of the caller what one of its snapshots was.
pub(crate) async fn rollback(
    app: &App,
    scope: &Scope,
    caller: Caller,
    capsule: CapsuleId,
    snapshot: String,
) -> Result<CapsuleRecord, ApiError> {
    let CapsuleRef { team_id, capsule_id } = reference(caller, capsule);
    let request = RollbackCapsuleRequest { team_id, capsule_id, snapshot };
    let back = to_the_end(app, scope, |app, id| async move { app.pool.rollback_capsule(request, &id).await });
    Ok(back.await??)
}

fn reference(caller: Caller, capsule: CapsuleId) -> CapsuleRef {
    CapsuleRef { team_id: caller.team.to_string(), capsule_id: capsule.to_string() }
}

fn limits(app: &App) -> TeamLimits {
    TeamLimits { capsules: app.config.team_capsules, memory_mb: app.config.team_memory_mb }
}

/// Runs a change in a task of its own, so that a caller that goes away in the middle does not stop it half-way.
pub(crate) async fn to_the_end<T, F>(
    app: &App,
    scope: &Scope,
    change: impl FnOnce(App, std::sync::Arc<str>) -> F,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let task = change(app.clone(), scope.request_id.clone());
    app.tasks.spawn(task.in_current_span()).await.map_err(ApiError::internal)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_so_already_is_refused_and_what_is_under_way_is_not() {
        let refused = refuse_what_is_so_already(Change::Pause, CapsuleState::Paused).expect_err("paused");
        assert_eq!(refused.code(), ErrorCode::InvalidState);
        assert!(refuse_what_is_so_already(Change::Resume, CapsuleState::Running).is_err());
        for (change, state) in [
            (Change::Pause, CapsuleState::Running),
            (Change::Pause, CapsuleState::Pausing),
            (Change::Resume, CapsuleState::Paused),
            (Change::Resume, CapsuleState::Resuming),
            (Change::Ping, CapsuleState::Running),
        ] {
            assert!(refuse_what_is_so_already(change, state).is_ok(), "{change:?} {state:?}");
        }
    }
}
