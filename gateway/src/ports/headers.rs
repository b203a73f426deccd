//! (pure) Headers between the client and a service that believes it is alone on localhost.
//!
//! Development servers refuse host names that they do not know, and check that `Origin` fits `Host`. So the service sees
//! `Host: localhost:{port}`, an `Origin` of its own where the client's was the port's public one, and the public name in
//! `X-Forwarded-Host`. Redirects to itself are turned back.

use super::target::Target;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Headers that are between two neighbours only (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The protocol that a request wants to change to.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let wanted =
        wanted.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    wanted.then(|| headers.get(header::UPGRADE).cloned()).flatten()
}

/// Removes what is between neighbours, also what `Connection` names.
pub(super) fn without_hops(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Makes a client's headers those that the service sees.
pub(super) fn inward(headers: &mut HeaderMap, target: &Target) {
    let public = headers.get(header::HOST).cloned();
    let upgrade = upgrade(headers);
    without_hops(headers);
    let local = format!("localhost:{}", target.port);
    if let (Some(origin), Some(public)) = (headers.get(header::ORIGIN), &public)
        && let (Ok(origin), Ok(public)) = (origin.to_str(), public.to_str())
        && origin.split_once("://").is_some_and(|(_, host)| host == public)
    {
        set(headers, header::ORIGIN, &format!("http://{local}"));
    }
    set(headers, header::HOST, &local);
    if let Some(public) = public {
        headers.insert(FORWARDED_HOST, public);
    }
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !target.prefix.is_empty() {
        set(headers, FORWARDED_PREFIX, &target.prefix);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Makes a service's headers those that the client sees.
pub(super) fn outward(headers: &mut HeaderMap, target: &Target, switching: bool) {
    let upgrade = if switching { headers.get(header::UPGRADE).cloned() } else { None };
    without_hops(headers);
    if let Some(location) = headers.get(header::LOCATION).and_then(|location| location.to_str().ok())
        && let Some(back) = turned_back(location, target)
    {
        set(headers, header::LOCATION, &back);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// A redirect of the service to itself, as the client can follow it.
fn turned_back(location: &str, target: &Target) -> Option<String> {
    let local = [format!("http://localhost:{}", target.port), format!("http://127.0.0.1:{}", target.port)];
    let path = local.iter().find_map(|local| location.strip_prefix(local.as_str()));
    match path {
        Some(path) if path.is_empty() || path.starts_with(['/', '?', '#']) => {
            let slash = if path.starts_with('/') { "" } else { "/" };
            Some(format!("{}{slash}{path}", target.prefix))
        }
        Some(_) => None,
        // A path alone, which by host name is right already.
        None if !target.prefix.is_empty() && location.starts_with('/') && !location.starts_with("//") => {
            Some(format!("{}{location}", target.prefix))
        }
        None => None,
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::target::Way, *};
    use hearth_proto::id::CapsuleId;

    fn target(prefix: &str) -> Target {
        let way = if prefix.is_empty() { Way::Host } else { Way::Path };
        Target { capsule: CapsuleId::new(), port: 5173, way, path: "/".to_owned(), prefix: prefix.to_owned() }
    }

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().expect("a name"), value.parse::<HeaderValue>().expect("a value"))
        };
        headers.iter().map(pair).collect()
    }

    #[test]
    fn the_service_sees_itself_on_localhost() {
        let mut headers = map(&[
            ("host", "5173-cl-1.example.org"),
            ("origin", "https://5173-cl-1.example.org"),
            ("connection", "keep-alive, X-Secret, Upgrade"),
            ("upgrade", "websocket"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("accept", "*/*"),
        ]);
        inward(&mut headers, &target(""));
        assert_eq!(headers[header::HOST], "localhost:5173");
        assert_eq!(headers[header::ORIGIN], "http://localhost:5173");
        assert_eq!(headers["x-forwarded-host"], "5173-cl-1.example.org");
        assert_eq!(
            (&headers[header::CONNECTION], &headers[header::UPGRADE]),
            (&HeaderValue::from_static("upgrade"), &HeaderValue::from_static("websocket"))
        );
        assert!(!headers.contains_key("x-secret") && !headers.contains_key("keep-alive"));
        let mut foreign = map(&[("host", "a.example"), ("origin", "https://evil.example")]);
        inward(&mut foreign, &target(""));
        assert_eq!(foreign[header::ORIGIN], "https://evil.example");
    }

    #[test]
    fn redirects_lead_back_to_the_client() {
        for (location, prefix, seen) in [
            ("http://localhost:5173/x", "", "/x"),
            ("http://127.0.0.1:5173", "", "/"),
            ("http://localhost:5173/x", "/p", "/p/x"),
            ("/x", "/p", "/p/x"),
            ("/x", "", "/x"),
            ("http://localhost:51730/x", "", "http://localhost:51730/x"),
            ("//elsewhere/x", "/p", "//elsewhere/x"),
            ("https://example.org/", "/p", "https://example.org/"),
            ("relative", "/p", "relative"),
        ] {
            let mut headers = map(&[("location", location)]);
            outward(&mut headers, &target(prefix), false);
            assert_eq!(headers[header::LOCATION], seen, "{location} below {prefix}");
        }
    }
}
