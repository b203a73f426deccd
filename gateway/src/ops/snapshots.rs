//! Templates of a team: snapshots of its capsules, and the platform's.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    middleware::Scope,
    ops::capsules::{to_the_end, unknown_capsule},
};
use hearth_proto::{
    error::ErrorCode,
    id::CapsuleId,
    wire::pool::{CreateTemplateRequest, DeleteTemplateRequest, ListTeamTemplatesRequest, TemplateRecord},
};
use tonic::Code;

/// A checked request for a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct NewSnapshot {
    pub(crate) capsule: CapsuleId,
    /// Empty: a new one.
    pub(crate) name: String,
    pub(crate) overwrite: bool,
    /// Empty: none.
    pub(crate) idempotency_key: String,
}

/// Keeps the state of a capsule of the caller as a template. The capsule goes on.
pub(crate) async fn create(
    app: &App,
    scope: &Scope,
    caller: Caller,
    snapshot: NewSnapshot,
) -> Result<TemplateRecord, ApiError> {
    let request = CreateTemplateRequest {
        team_id: caller.team.to_string(),
        capsule_id: snapshot.capsule.to_string(),
        name: snapshot.name,
        overwrite: snapshot.overwrite,
        idempotency_key: snapshot.idempotency_key,
    };
    let made = to_the_end(app, scope, |app, id| async move { app.pool.create_snapshot(request, &id).await });
    made.await?.map_err(unknown_capsule)
}

/// The team's snapshots and the platform's templates, the newest first.
pub(crate) async fn list(app: &App, scope: &Scope, caller: Caller) -> Result<Vec<TemplateRecord>, ApiError> {
    let request = ListTeamTemplatesRequest { team_id: caller.team.to_string() };
    Ok(app.pool.list_team_templates(request, &scope.request_id).await?.templates)
}

/// Deletes a snapshot of the team.
pub(crate) async fn delete(app: &App, scope: &Scope, caller: Caller, name: String) -> Result<(), ApiError> {
    let request = DeleteTemplateRequest { team_id: caller.team.to_string(), name };
    let deleted =
        to_the_end(app, scope, |app, id| async move { app.pool.delete_snapshot(request, &id).await });
    deleted.await?.map(drop).map_err(|error| match error.code() {
        Some(Code::NotFound) => ApiError::new(ErrorCode::NotFound, "there is no such snapshot"),
        _ => error.into(),
    })
}
