//! Ports of capsules: HTTP and WebSockets to what listens inside, by host name (`{port}-{capsule}.{domain}`) or by path
//! (`/v1/capsules/{id}/ports/{port}/…`).
//!
//! ```text
//! client ──▶ target (which port, whose) ──▶ LocatePort ──▶ tunnel (bytes over the agent) ──▶ forward (HTTP/1.1)
//! ```
//!
//! Private by default: a key, or the capsule's access token. Neither is ever passed on into the guest.

mod credentials;
mod forward;
mod headers;
mod target;
mod tunnel;

use crate::{app::App, auth, error::ApiError, middleware::Scope, ops::capsules::unknown_capsule};
use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use credentials::Credentials;
use hearth_proto::{error::ErrorCode, wire::pool::LocatePortRequest};
use http::Method;
use target::{Target, Way};
use tonic::Code;

/// The route by path, for the scope that it needs; requests by host name need the same.
const ROUTE: &str = "/v1/capsules/{id}/ports/{port}/{*path}";

/// The layer in front of all routes: takes the requests whose host name is a port's.
pub(crate) async fn by_host(State(app): State<App>, request: Request, next: Next) -> Response {
    match target::by_host(request.headers(), request.uri()) {
        None => next.run(request).await,
        Some(Ok(target)) => serve(app, target, request).await,
        Some(Err(error)) => error.into_response(),
    }
}

/// The routes by path.
pub(crate) async fn by_path(State(app): State<App>, request: Request) -> Response {
    match target::by_path(request.uri()) {
        Ok(target) => serve(app, target, request).await,
        Err(error) => error.into_response(),
    }
}

async fn serve(app: App, target: Target, mut request: Request) -> Response {
    let credentials = credentials::take(&mut request);
    if target.way == Way::Host
        && let Some(redirect) = credentials::to_cookie(&credentials, &request)
    {
        return redirect;
    }
    proxied(app, target, credentials, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn proxied(
    app: App,
    target: Target,
    credentials: Credentials,
    request: Request,
) -> Result<Response, ApiError> {
    let scope = Scope::of(request.extensions())?;
    let permit = app.stream_permit()?;
    let caller = match &credentials.key {
        Some(key) => Some(auth::enter(&app, key, &Method::GET, ROUTE).await?),
        None => None,
    };
    let located = LocatePortRequest {
        capsule_id: target.capsule.to_string(),
        port: u32::from(target.port),
        team_id: caller.map(|caller| caller.team.to_string()).unwrap_or_default(),
        access_token: credentials.token.clone().unwrap_or_default(),
    };
    let host = app.pool.locate_port(located, &scope.request_id).await.map_err(|error| match error.code() {
        Some(Code::PermissionDenied) if caller.is_none() && credentials.token.is_none() => auth::unauthorized(
            "this port is private: send your API key in X-API-Key, or the capsule's access token in X-Hearth-Token",
        ),
        // Whoever may not use it is not told whether it is there.
        Some(Code::PermissionDenied | Code::NotFound) => {
            ApiError::new(ErrorCode::NotFound, "there is no such capsule")
        }
        _ => unknown_capsule(error),
    })?;
    let tunnel = tunnel::open(&app, &host, target.capsule, target.port, &scope.request_id).await?;
    forward::forward(&app, &target, tunnel, permit, request).await
}
