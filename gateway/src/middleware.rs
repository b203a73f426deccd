//! What happens around every request: its id, its span, its log line, its metrics, and the limit on how many run.

use crate::{app::App, error::ApiError};
use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;
use uuid::Uuid;

const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_CHARS_MAX: usize = 64;
/// The status that stands in logs and metrics for a client that went away before the answer (nginx's number).
const GONE: u16 = 499;
/// The route label of requests that match no route: paths are a caller's text and would make endless series.
const NO_ROUTE: &str = "none";

/// Asked every few seconds by machines: not worth a line each.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// What a request carries from layer to layer.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub(crate) request_id: Arc<str>,
    /// When its head had arrived.
    pub(crate) started: Instant,
    /// The request's place among those that may run; work that outlives the request takes a clone along.
    pub(crate) permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Scope {
    /// The scope of a request, which [`observe`] has given it.
    pub(crate) fn of(extensions: &Extensions) -> Result<Self, ApiError> {
        extensions.get::<Self>().cloned().ok_or_else(|| ApiError::internal(NoScope))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a request without a scope")]
struct NoScope;

/// The route that a request matched, as it is written in the router.
pub(crate) fn route_of(extensions: &Extensions) -> Option<&str> {
    extensions.get::<MatchedPath>().map(MatchedPath::as_str)
}

/// Describes the metrics in `/metrics`.
pub(crate) fn describe() {
    metrics::describe_counter!("hearth_gateway_requests_total", "HTTP requests by route, method and status");
    metrics::describe_histogram!(
        "hearth_gateway_request_seconds",
        "Time from a request's head to its answer"
    );
    metrics::describe_gauge!("hearth_gateway_requests_in_flight", "HTTP requests that are being served");
}

/// The outermost layer: gives the request its id and span, and says what came of it.
pub(crate) async fn observe(mut request: Request, next: Next) -> Response {
    let request_id = request_id(request.headers());
    let route = route_of(request.extensions()).unwrap_or(NO_ROUTE).to_owned();
    let span = tracing::info_span!("request", request.id = %request_id, http.method = %request.method(), http.route = route);
    let watch = Watch::new(route, request.method());
    let scope = Scope { request_id: request_id.clone(), started: watch.started, permit: None };
    request.extensions_mut().insert(scope);
    async move {
        let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let mut response = answered.unwrap_or_else(|_| ApiError::internal(Panicked).into_response());
        if let Ok(value) = HeaderValue::from_str(&request_id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        watch.answered(response.status());
        response
    }
    .instrument(span)
    .await
}

/// Lets as many requests run as the settings allow, and refuses the rest at once.
pub(crate) async fn admit(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let Ok(permit) = app.permits.clone().try_acquire_owned() else {
        return ApiError::no_capacity("too many requests at the same time; try again").into_response();
    };
    // Taken here and given to the request's scope: it is free again when the last holder is dropped.
    let permit = Arc::new(permit);
    if let Some(scope) = request.extensions_mut().get_mut::<Scope>() {
        scope.permit = Some(permit.clone());
    }
    let response = tokio::select! {
        // An answer that is there is not thrown away.
        biased;
        response = next.run(request) => response,
        () = app.stopped() => ApiError::unavailable("Hearth is shutting down; try again").into_response(),
    };
    drop(permit);
    response
}

#[derive(Debug, thiserror::Error)]
#[error("a handler panicked")]
struct Panicked;

/// The caller's id for the request, if it can stand in a log line, else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            (1..=REQUEST_ID_CHARS_MAX).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        })
        .map_or_else(|| format!("req-{}", Uuid::now_v7().simple()).into(), Into::into)
}

/// Counts one request: when it is answered, or dropped because its client went away.
struct Watch {
    started: Instant,
    route: String,
    method: &'static str,
    status: u16,
}

impl Watch {
    fn new(route: String, method: &Method) -> Self {
        metrics::gauge!("hearth_gateway_requests_in_flight").increment(1.0);
        Self { started: Instant::now(), route, method: method_label(method), status: GONE }
    }

    fn answered(mut self, status: StatusCode) {
        self.status = status.as_u16();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let route = std::mem::take(&mut self.route);
        metrics::gauge!("hearth_gateway_requests_in_flight").decrement(1.0);
        metrics::histogram!("hearth_gateway_request_seconds", "route" => route.clone()).record(took);
        let status = self.status.to_string();
        metrics::counter!("hearth_gateway_requests_total", "route" => route.clone(), "method" => self.method, "status" => status)
            .increment(1);
        let took_ms = f64::from(u32::try_from(took.as_micros()).unwrap_or(u32::MAX)) / 1e3;
        if PROBES.contains(&route.as_str()) {
            tracing::debug!(http.status = self.status, took_ms, "probe served");
        } else {
            tracing::info!(http.status = self.status, took_ms, "request served");
        }
    }
}

/// Methods are a caller's text too.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_request_id_is_kept_only_if_it_is_plain() {
        let id_of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
            request_id(&headers)
        };
        assert_eq!(&*id_of("trace-1.A_b"), "trace-1.A_b");
        for junk in ["", "a b", "\"><script>", &"x".repeat(65)] {
            assert!(id_of(junk).starts_with("req-"), "{junk}");
        }
    }
}
