//! What a caller shows for a port, taken out of the request so that the guest never sees it.
//!
//! A key in `X-API-Key` or `Authorization: Bearer wrn_…` (any other `Authorization` is the service's own), the capsule's
//! access token in `X-Hearth-Token`, in a cookie, or once in the query as `hearth_token=`, which is turned into the cookie.

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const TOKEN: HeaderName = HeaderName::from_static("x-hearth-token");
/// Parameter and cookie.
const NAME: &str = "hearth_token";
const KEY_PREFIX: &str = "wrn_";

/// What was shown.
#[derive(Default)]
pub(super) struct Credentials {
    pub(super) key: Option<String>,
    pub(super) token: Option<String>,
    /// The token came in the query.
    in_query: bool,
}

/// Takes the credentials out of a request.
pub(super) fn take(request: &mut Request) -> Credentials {
    let mut found = Credentials::default();
    if let Some((uri, token)) = without_token(request.uri()) {
        found.token = Some(token);
        found.in_query = true;
        *request.uri_mut() = uri;
    }
    let headers = request.headers_mut();
    found.key =
        headers.remove(API_KEY).and_then(|value| value.to_str().ok().map(|key| key.trim().to_owned()));
    if let Some(key) = bearer(headers) {
        headers.remove(header::AUTHORIZATION);
        found.key = found.key.or(Some(key));
    }
    let header = headers.remove(TOKEN).and_then(|value| value.to_str().ok().map(str::to_owned));
    let cookie = take_cookie(headers);
    found.token = header.or(found.token).or(cookie);
    found
}

/// A browser that came with the token in its address gets it as a cookie, and the address without it.
pub(super) fn to_cookie(credentials: &Credentials, request: &Request) -> Option<Response> {
    let upgrade = request.headers().contains_key(header::UPGRADE);
    if !credentials.in_query || request.method() != Method::GET || upgrade {
        return None;
    }
    let token = credentials.token.as_deref()?;
    if !token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        return None;
    }
    let cookie = HeaderValue::from_str(&format!("{NAME}={token}; Path=/; HttpOnly; SameSite=Lax")).ok()?;
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let location = HeaderValue::from_str(path).ok()?;
    let mut response = StatusCode::FOUND.into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response.headers_mut().insert(header::LOCATION, location);
    Some(response)
}

/// A Hearth key in `Authorization`.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && key.starts_with(KEY_PREFIX)).then(|| key.to_owned())
}

/// The address without the token; none when it has none.
fn without_token(uri: &Uri) -> Option<(Uri, String)> {
    let (mut token, mut rest) = (None, Vec::new());
    for part in uri.query()?.split('&') {
        match part.strip_prefix(NAME).and_then(|value| value.strip_prefix('=')) {
            Some(value) => token = Some(value.to_owned()),
            None => rest.push(part),
        }
    }
    let path = match rest.as_slice() {
        [] => uri.path().to_owned(),
        rest => format!("{}?{}", uri.path(), rest.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.parse().ok()?);
    Some((Uri::from_parts(parts).ok()?, token?))
}

/// Removes our cookie and leaves the others.
fn take_cookie(headers: &mut HeaderMap) -> Option<String> {
    let (mut token, mut others) = (None, Vec::new());
    for value in headers.get_all(header::COOKIE) {
        let Ok(text) = value.to_str() else { continue };
        for cookie in text.split(';').map(str::trim).filter(|cookie| !cookie.is_empty()) {
            match cookie.split_once('=') {
                Some((NAME, value)) => token = Some(value.to_owned()),
                Some(_) | None => others.push(cookie.to_owned()),
            }
        }
    }
    if token.is_some() {
        headers.remove(header::COOKIE);
        if let Ok(value) = HeaderValue::from_str(&others.join("; "))
            && !others.is_empty()
        {
            headers.insert(header::COOKIE, value);
        }
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).expect("a request")
    }

    #[test]
    fn nothing_of_ours_is_left_for_the_guest() {
        let mut asked = request(
            "/a%2Fb?x=1&hearth_token=in-query&y=2",
            &[
                ("x-api-key", "wrn_1"),
                ("authorization", "Bearer wrn_2"),
                ("x-hearth-token", "in-header"),
                ("cookie", "a=1; hearth_token=in-cookie; b=2"),
            ],
        );
        let found = take(&mut asked);
        assert_eq!((found.key.as_deref(), found.token.as_deref()), (Some("wrn_1"), Some("in-header")));
        assert_eq!(asked.uri(), "/a%2Fb?x=1&y=2");
        let left: Vec<_> =
            asked.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(left, [("cookie", &b"a=1; b=2"[..])]);
    }

    #[test]
    fn what_belongs_to_the_service_stays() {
        let mut asked =
            request("/?token=x", &[("authorization", "Bearer jupyter"), ("cookie", "a=1; c=hearth_token")]);
        let found = take(&mut asked);
        assert!(found.key.is_none() && found.token.is_none());
        assert_eq!(asked.headers().len(), 2);
        assert_eq!(asked.uri(), "/?token=x");
        let mut asked = request("/", &[("authorization", "token abc")]);
        take(&mut asked);
        assert!(asked.headers().contains_key("authorization"));
    }

    #[test]
    fn a_browser_gets_a_cookie_and_a_clean_address() {
        let mut asked = request("/lab?hearth_token=abc", &[]);
        let found = take(&mut asked);
        let redirect = to_cookie(&found, &asked).expect("a redirect");
        assert_eq!(redirect.headers()[header::LOCATION], "/lab");
        let cookie = redirect.headers()[header::SET_COOKIE].to_str().expect("ASCII").to_owned();
        assert!(cookie.starts_with("hearth_token=abc;") && cookie.contains("HttpOnly"));
        let mut asked = request("/lab?hearth_token=a;b", &[]);
        let found = take(&mut asked);
        assert!(to_cookie(&found, &asked).is_none());
    }
}
