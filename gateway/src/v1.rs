//! The HTTP API's first version: reads requests, calls `ops`, shapes answers. The compatible routes keep the words of
//! the API that they are compatible with (`sandbox_id`, `envs`); they end in this folder.

pub(crate) mod admin;
pub(crate) mod audit_logs;
pub(crate) mod capsule_body;
pub(crate) mod capsules;
pub(crate) mod console;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod execute;
pub(crate) mod files;
pub(crate) mod health;
pub(crate) mod hosts;
pub(crate) mod keys;
pub(crate) mod lifecycle;
pub(crate) mod metrics;
pub(crate) mod processes;
pub(crate) mod run_answer;
pub(crate) mod run_request;
pub(crate) mod snapshots;
pub(crate) mod ws;

use crate::error::ApiError;
use axum::{
    Json,
    extract::{FromRequestParts, RawPathParams},
    response::{IntoResponse, Response},
};
use hearth_proto::id::CapsuleId;
use http::{HeaderValue, StatusCode, header, request::Parts};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A 201 that says where the new thing is.
pub(crate) fn created(location: &str, body: &impl Serialize) -> Result<Response, ApiError> {
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    let location = HeaderValue::from_str(location).map_err(ApiError::internal)?;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// An instant in UTC and whole seconds.
pub(crate) fn rfc3339(at: OffsetDateTime) -> String {
    let whole = at.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_default()
}

/// The capsule in the path.
pub(crate) struct CapsulePath(pub(crate) CapsuleId);

impl<S: Send + Sync> FromRequestParts<S> for CapsulePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::invalid("id: not a valid capsule id"))?;
        let id = params.iter().find_map(|(name, value)| (name == "id").then_some(value)).unwrap_or_default();
        id.parse().map(Self).map_err(|error| ApiError::invalid(format!("id: {error}")))
    }
}
