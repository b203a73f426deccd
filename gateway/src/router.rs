//! Every route on one page, and the layers around them, outermost last.

use crate::{
    app::App,
    error::ApiError,
    middleware,
    v1::{capsules, exec, execute, health},
};
use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
    routing::{get, post},
};
use hearth_proto::error::ErrorCode;
use http::{Method, StatusCode, Uri};

/// The whole API.
pub(crate) fn routes(app: &App) -> Router {
    Router::new()
        .merge(api(app))
        .merge(operations())
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(middleware::observe))
        .with_state(app.clone())
}

/// Routes for callers with a key. They count against the limit of requests.
fn api(app: &App) -> Router<App> {
    Router::new()
        .route("/v1/execute", post(execute::one_shot))
        .route("/v1/capsules", post(capsules::create).get(capsules::list))
        .route("/v1/capsules/{id}", get(capsules::get).delete(capsules::destroy))
        .route("/v1/capsules/{id}/exec", post(exec::exec))
        .route("/v1/capsules/{id}/execute", post(execute::in_capsule))
        .layer(from_fn_with_state(app.clone(), middleware::admit))
}

/// Routes for probes and scrapers: no key, and never refused because the API is busy.
fn operations() -> Router<App> {
    Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
}

async fn no_route(uri: Uri) -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        format!("there is no route {}", crate::json::fields::shown(uri.path())),
    )
}

async fn wrong_method(method: Method) -> ApiError {
    ApiError::invalid(format!("this route does not take {method}"))
        .with_status(StatusCode::METHOD_NOT_ALLOWED)
}
