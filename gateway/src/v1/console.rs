//! `GET /v1/capsules/{id}/logs`: what the guest wrote to its console.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    middleware::Scope,
    ops::{capsules::unknown_capsule, guest::Place},
    v1::CapsulePath,
};
use axum::{Extension, Json, extract::State};
use serde::Serialize;

/// The console.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ConsoleAnswer {
    /// The last MiB at most; what is no text is replaced by U+FFFD.
    console: String,
}

/// The guest's console, oldest line first.
pub(crate) async fn console(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
) -> Result<Json<ConsoleAnswer>, ApiError> {
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let console =
        app.agents.console(&place.host, capsule, &scope.request_id).await.map_err(unknown_capsule)?;
    Ok(Json(ConsoleAnswer { console: String::from_utf8_lossy(&console).into_owned() }))
}
