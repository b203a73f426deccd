//! `/v1/snapshots`, the compatible API's word for templates too; `/v1/templates` is the same list.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    idempotency,
    json::{body::JsonBody, query::Query, rules},
    middleware::Scope,
    ops::snapshots::{self, NewSnapshot},
    v1::{capsule_body::instant, created},
};
use axum::{
    Extension, Json,
    extract::{Path, State},
    response::Response,
};
use hearth_proto::wire::pool::TemplateRecord;
use http::{HeaderMap, StatusCode};
use serde::Serialize;

/// A template in the compatible shape.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct TemplateBody {
    name: String,
    /// `base` or `snapshot`: a strict enum in clients.
    #[serde(rename = "type")]
    kind: &'static str,
    vcpus: u32,
    memory_mb: u64,
    size_bytes: u64,
    created_at: Option<String>,
    /// Everybody's.
    platform: bool,
    /// Cannot be deleted.
    protected: bool,
    /// Of a snapshot: the capsule it was taken from.
    #[serde(skip_serializing_if = "String::is_empty")]
    sandbox_id: String,
}

impl From<TemplateRecord> for TemplateBody {
    fn from(record: TemplateRecord) -> Self {
        Self {
            name: record.name,
            kind: kind(record.snapshot),
            vcpus: record.vcpus,
            memory_mb: record.memory_mb,
            size_bytes: record.size_bytes,
            created_at: instant(record.created_at_ms),
            platform: record.platform,
            protected: record.platform,
            sandbox_id: record.capsule_id,
        }
    }
}

fn kind(snapshot: bool) -> &'static str {
    if snapshot { "snapshot" } else { "base" }
}

/// Keeps a capsule's state under a name. The capsule goes on.
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    headers: HeaderMap,
    mut query: Query,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let mut fields = body.fields()?;
    let capsule = fields.required_text("sandbox_id")?;
    let capsule =
        capsule.parse().map_err(|error: hearth_proto::id::IdError| fields.fault("sandbox_id", error))?;
    let snapshot = NewSnapshot {
        capsule,
        name: rules::template_name(&mut fields, "name")?.unwrap_or_default(),
        overwrite: query.flag("overwrite")?.unwrap_or(false),
        idempotency_key: idempotency::key_text(&headers)?,
    };
    let record = snapshots::create(&app, &scope, caller, snapshot).await?;
    created(&format!("/v1/snapshots/{}", record.name), &TemplateBody::from(record))
}

/// The team's snapshots and the platform's templates.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    mut query: Query,
) -> Result<Json<Vec<TemplateBody>>, ApiError> {
    let wanted = query.text("type");
    if wanted.as_deref().is_some_and(|wanted| !["base", "snapshot"].contains(&wanted)) {
        return Err(query.fault("type", "must be base or snapshot"));
    }
    let templates = snapshots::list(&app, &scope, caller).await?.into_iter();
    let templates =
        templates.filter(|record| wanted.as_deref().is_none_or(|wanted| wanted == kind(record.snapshot)));
    Ok(Json(templates.map(TemplateBody::from).collect()))
}

/// Deletes a snapshot of the team. Capsules that came from it do not need it.
pub(crate) async fn delete(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    rules::check_template_name(&name).map_err(|fault| ApiError::invalid(format!("name: {fault}")))?;
    snapshots::delete(&app, &scope, caller, name).await?;
    Ok(StatusCode::NO_CONTENT)
}
