//! Who asks: an API key becomes a caller. The same for every route.

pub(crate) mod api_key;
pub mod first_key;

use crate::{app::App, error::ApiError};
use axum::extract::FromRequestParts;
use hearth_proto::{
    error::ErrorCode,
    id::{KeyId, TeamId},
};
use http::{HeaderMap, header, request::Parts};

/// The key's owner. A handler that takes this is for callers with a valid key only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) key: KeyId,
    pub(crate) team: TeamId,
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let secret = credential(&parts.headers)?;
        app.keys.caller(&app.store, secret).await
    }
}

/// The key in `X-API-Key`, which goes first, or in `Authorization: Bearer`.
fn credential(headers: &HeaderMap) -> Result<&str, ApiError> {
    let value = match headers.get("x-api-key") {
        Some(value) => value.to_str().ok(),
        None => match headers.get(header::AUTHORIZATION) {
            Some(value) => value.to_str().ok().and_then(bearer),
            None => return Err(unauthorized("send your API key in X-API-Key or Authorization: Bearer")),
        },
    };
    value.map(str::trim).ok_or_else(|| unauthorized("the API key is not valid"))
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret)
}

pub(crate) fn unauthorized(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_key_is_found_in_either_header() {
        let cases: [(&str, &str, Option<&str>); 7] = [
            ("x-api-key", "wrn_1", Some("wrn_1")),
            ("authorization", "Bearer wrn_1", Some("wrn_1")),
            ("authorization", "bearer  wrn_1 ", Some("wrn_1")),
            ("authorization", "Basic wrn_1", None),
            ("authorization", "wrn_1", None),
            ("x-api-key", "wrn_\u{fc}", None),
            ("cookie", "wrn_1", None),
        ];
        for (name, value, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
            assert_eq!(credential(&headers).ok(), expected, "{name}: {value}");
        }
    }
}
