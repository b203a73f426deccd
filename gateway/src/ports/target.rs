//! (pure) Which port of which capsule a request is for.

use crate::error::ApiError;
use hearth_proto::{id::CapsuleId, metadata::ENVD_PORT};
use http::{HeaderMap, Uri, header};

/// How a request names its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Host,
    Path,
}

/// A port of a capsule, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) capsule: CapsuleId,
    pub(super) port: u16,
    pub(super) way: Way,
    /// Path and query as they came, without what names the port: `%2F` stays `%2F`.
    pub(super) path: String,
    /// What was cut off in front of it; empty for host names.
    pub(super) prefix: String,
}

/// The port in a host name such as `8888-cl-….localhost:8080`. None: the request is for Hearth itself.
pub(super) fn by_host(headers: &HeaderMap, uri: &Uri) -> Option<Result<Target, ApiError>> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).or_else(|| uri.host())?;
    let label = host.split_once('.')?.0;
    let (port, capsule) = label.split_once("-cl-")?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let capsule = format!("cl-{capsule}");
    Some(target(&capsule, port, Way::Host, path, String::new()))
}

/// The port in a path such as `/v1/capsules/cl-…/ports/8888/api?x=y`.
pub(super) fn by_path(uri: &Uri) -> Result<Target, ApiError> {
    let whole = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut parts = whole.splitn(7, '/');
    // "", v1, capsules, {id}, ports, {port}, the rest
    let capsule = parts.nth(3).unwrap_or_default();
    let port = parts.nth(1).unwrap_or_default();
    let (port, query) = match port.split_once('?') {
        Some((port, query)) => (port, Some(query)),
        None => (port, None),
    };
    let prefix = format!("/v1/capsules/{capsule}/ports/{port}");
    let path = match (parts.next(), query) {
        (Some(rest), _) => format!("/{rest}"),
        (None, Some(query)) => format!("/?{query}"),
        (None, None) => "/".to_owned(),
    };
    target(capsule, port, Way::Path, path, prefix)
}

fn target(capsule: &str, port: &str, way: Way, path: String, prefix: String) -> Result<Target, ApiError> {
    let capsule = capsule.parse().map_err(|error| ApiError::invalid(format!("id: {error}")))?;
    match port.parse() {
        Ok(0) | Err(_) => Err(ApiError::invalid("port: must be from 1 to 65535")),
        Ok(ENVD_PORT) => {
            Err(ApiError::invalid(format!("port: {ENVD_PORT} is the guest daemon's own and is never open")))
        }
        Ok(port) => Ok(Target { capsule, port, way, path, prefix }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const ID: &str = "cl-0000000000000000000000001";

    fn of_host(host: &str, path: &str) -> Option<Result<Target, ApiError>> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).expect("a host"));
        by_host(&headers, &path.parse().expect("a path"))
    }

    #[test]
    fn host_names_of_ports_are_told_from_others() {
        let target = of_host(&format!("8888-{ID}.localhost:8080"), "/api/a%2Fb?x=1").expect("a port's");
        let target = target.expect("fine");
        assert_eq!((target.port, target.path.as_str()), (8888, "/api/a%2Fb?x=1"));
        for other in
            ["localhost:8080", "127.0.0.1", "api.example.org", "x-cl-1.example.org", "cl-1.example.org"]
        {
            assert!(of_host(other, "/").is_none(), "{other}");
        }
        for wrong in
            [format!("0-{ID}.x"), format!("70000-{ID}.x"), format!("49983-{ID}.x"), "80-cl-1.x".to_owned()]
        {
            assert!(of_host(&wrong, "/").expect("a port's").is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_keep_what_follows_as_it_is() {
        for (rest, path) in [("", "/"), ("/", "/"), ("/a%2Fb//c?q=%20", "/a%2Fb//c?q=%20"), ("?q", "/?q")] {
            let uri = format!("/v1/capsules/{ID}/ports/3000{rest}").parse().expect("a path");
            let target = by_path(&uri).expect("fine");
            assert_eq!((target.port, target.path.as_str()), (3000, path), "{rest}");
            assert_eq!(target.prefix, format!("/v1/capsules/{ID}/ports/3000"));
        }
    }
}
