//! Probes and metrics: no key needed.

use crate::{app::App, middleware::Scope};
use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use hearth_proto::error::ErrorCode;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

/// The process lives.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

/// Runs can be served now. 503 otherwise, with the reason both in the error's shape and as `detail`.
pub(crate) async fn ready(State(app): State<App>, Extension(scope): Extension<Scope>) -> Response {
    if !app.store.answers().await {
        return not_ready("the database does not answer", &json!([]));
    }
    let status = match app.pool.status(&scope.request_id).await {
        Ok(status) => status,
        Err(error) => {
            tracing::debug!(%error, "pool-manager does not answer");
            return not_ready("pool-manager does not answer", &json!([]));
        }
    };
    let pools = status
        .pools
        .iter()
        .map(|pool| {
            json!({ "template": pool.template, "target": pool.target, "parked": pool.parked,
                    "refilling": pool.refilling, "hits": pool.hits, "misses": pool.misses })
        })
        .collect();
    if status.ready {
        return Json(json!({ "ready": true, "detail": status.detail, "pools": Value::Array(pools) }))
            .into_response();
    }
    let detail = if status.detail.is_empty() { "pool-manager is starting" } else { &status.detail };
    not_ready(detail, &Value::Array(pools))
}

/// All metrics of this process in Prometheus' text form.
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let mut response = app.metrics.render().into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}

fn not_ready(detail: &str, pools: &Value) -> Response {
    let code = ErrorCode::HostUnavailable;

    let body = json!({
        "error": { "code": code.as_str(), "message": detail },
        "ready": false,
        "detail": detail,
        "pools": pools,
    });
    let retry = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
    (StatusCode::SERVICE_UNAVAILABLE, retry, Json(body)).into_response()
}
