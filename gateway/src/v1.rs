//! The HTTP API's first version: reads requests, calls `ops`, shapes answers. The compatible routes keep the words of
//! the API that they are compatible with (`sandbox_id`, `envs`); they end in this folder.

pub(crate) mod capsule_body;
pub(crate) mod capsules;
pub(crate) mod exec;
pub(crate) mod execute;
pub(crate) mod files;
pub(crate) mod health;
pub(crate) mod lifecycle;
pub(crate) mod processes;
pub(crate) mod run_answer;
pub(crate) mod run_request;
pub(crate) mod snapshots;
pub(crate) mod ws;

use crate::error::ApiError;
use axum::extract::{FromRequestParts, Path};
use hearth_proto::id::CapsuleId;
use http::request::Parts;

/// The capsule in the path.
pub(crate) struct CapsulePath(pub(crate) CapsuleId);

impl<S: Send + Sync> FromRequestParts<S> for CapsulePath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::invalid("id: not a valid capsule id"))?;
        id.parse().map(Self).map_err(|error| ApiError::invalid(format!("id: {error}")))
    }
}
