//! Who asks, and what they may: an API key becomes a caller, the same for every route.

pub(crate) mod api_key;
pub mod first_key;
pub(crate) mod limits;
pub(crate) mod scopes;

use crate::{app::App, error::ApiError, middleware::route_of};
use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hearth_proto::{
    error::ErrorCode,
    id::{KeyId, TeamId},
};
use http::{HeaderMap, Method, header, request::Parts};
use scopes::{KeyScope, KeyScopes};
use std::time::Instant;
use time::OffsetDateTime;

/// The key's owner. A handler that takes this is for callers with a valid key only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) key: KeyId,
    pub(crate) team: TeamId,
    pub(crate) scopes: KeyScopes,
    pub(crate) expires_at: Option<OffsetDateTime>,
}

impl Caller {
    /// Refuses what the key may not do.
    pub(crate) fn needs(&self, scope: KeyScope) -> Result<(), ApiError> {
        if self.scopes.has(scope) {
            return Ok(());
        }
        let message = format!("this API key lacks the scope `{}`", scope.as_str());
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().copied().ok_or_else(missing)
    }
}

/// The layer of all routes for callers: a key that is sent is checked, counted against its limits, and held against
/// what the route asks for. Without one the request goes on, and whatever needs a [`Caller`] refuses it.
pub(crate) async fn layer(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let route = route_of(request.extensions()).map(str::to_owned);
    let route = route.unwrap_or_default();
    let caller = match sent(&app, request.headers(), request.method(), &route).await {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    let runs = caller.filter(|_| RUNS.contains(&route.as_str())).map(|caller| caller.team);
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    let begun = Instant::now();
    if let Some(team) = runs
        && let Err(error) = app.limits.may_run(team, begun)
    {
        return error.into_response();
    }
    let response = next.run(request).await;
    if let Some(team) = runs {
        app.limits.ran(team, begun.elapsed(), Instant::now());
    }
    response
}

/// Routes that run code and wait for it.
const RUNS: [&str; 3] = ["/v1/execute", "/v1/capsules/{id}/execute", "/v1/capsules/{id}/exec"];

/// The caller of a request, if it sends a key.
pub(crate) async fn sent(
    app: &App,
    headers: &HeaderMap,
    method: &Method,
    route: &str,
) -> Result<Option<Caller>, ApiError> {
    let Some(secret) = credential(headers)? else { return Ok(None) };
    enter(app, secret, method, route).await.map(Some)
}

/// The caller behind a key, if it may use the route now.
pub(crate) async fn enter(app: &App, secret: &str, method: &Method, route: &str) -> Result<Caller, ApiError> {
    let caller = app.keys.caller(&app.store, secret).await?;
    app.limits.request(caller.key)?;
    caller.needs(scopes::required(method, route))?;
    if method == Method::POST && CREATES.contains(&route) {
        app.limits.create(caller.key)?;
    }
    Ok(caller)
}

/// Routes that make capsules.
const CREATES: [&str; 3] = ["/v1/execute", "/v1/capsules", "/v1/capsules/{id}/fork"];

/// The key in `X-API-Key`, which goes first, or in `Authorization: Bearer`.
fn credential(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let value = match headers.get("x-api-key") {
        Some(value) => value.to_str().ok(),
        None => match headers.get(header::AUTHORIZATION) {
            Some(value) => value.to_str().ok().and_then(bearer),
            None => return Ok(None),
        },
    };
    value.map(|value| Some(value.trim())).ok_or_else(|| unauthorized("the API key is not valid"))
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret)
}

pub(crate) fn missing() -> ApiError {
    unauthorized("send your API key in X-API-Key or Authorization: Bearer")
}

pub(crate) fn unauthorized(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, message)
}

#[cfg(test)]
impl Caller {
    /// Somebody with a key for everything in a team.
    pub(crate) fn for_tests() -> Self {
        Self { key: KeyId::new(), team: TeamId::new(), scopes: KeyScopes::TEAM, expires_at: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_key_is_found_in_either_header() {
        let cases: [(&str, &str, Option<&str>); 6] = [
            ("x-api-key", "wrn_1", Some("wrn_1")),
            ("authorization", "Bearer wrn_1", Some("wrn_1")),
            ("authorization", "bearer  wrn_1 ", Some("wrn_1")),
            ("authorization", "Basic wrn_1", None),
            ("authorization", "wrn_1", None),
            ("x-api-key", "wrn_\u{fc}", None),
        ];
        for (name, value, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
            assert_eq!(credential(&headers).ok().flatten(), expected, "{name}: {value}");
        }
        assert!(matches!(credential(&HeaderMap::new()), Ok(None)));
    }

    #[test]
    fn a_key_without_the_scope_is_forbidden() {
        let caller = Caller { scopes: KeyScopes::default().with(KeyScope::Read), ..Caller::for_tests() };
        assert!(caller.needs(KeyScope::Read).is_ok());
        let refused = caller.needs(KeyScope::Run).expect_err("no right");
        assert_eq!(refused.code(), ErrorCode::Forbidden);
        assert!(refused.to_string().contains("`run`"));
    }
}
