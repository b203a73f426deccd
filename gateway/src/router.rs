//! Every route on one page, and the layers around them, outermost last.

use crate::{
    app::App,
    audit, auth,
    error::ApiError,
    extension::{Extension, Hearth},
    middleware, ports,
    v1::{
        admin, audit_logs, capsules, console, events, exec, execute, files, health, hosts, keys, lifecycle,
        metrics, processes, snapshots, ws,
    },
};
use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::{from_fn, from_fn_with_state},
    routing::{any, delete, get, post, put},
};
use hearth_proto::error::ErrorCode;
use http::{Method, StatusCode, Uri};

/// The whole API, and what extensions add to it.
pub(crate) fn routes(app: &App, extensions: &[Box<dyn Extension>]) -> Router {
    let hearth = Hearth::new(app);
    let own = Router::new()
        .merge(api(app))
        .merge(operations())
        .merge(port_routes())
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app.clone());
    let all = extensions.iter().fold(own, |all, extension| all.merge(extension.routes(&hearth)));
    let all = all.layer(from_fn_with_state(app.clone(), ports::by_host)).layer(from_fn(middleware::observe));
    extensions.iter().fold(all, |all, extension| extension.layer(all, &hearth))
}

/// Routes for callers with a key. They count against the limit of requests.
fn api(app: &App) -> Router<App> {
    Router::new()
        .route("/v1/execute", post(execute::one_shot))
        .route("/v1/capsules", post(capsules::create).get(capsules::list))
        .route("/v1/capsules/{id}", get(capsules::get).patch(capsules::update).delete(capsules::destroy))
        .route("/v1/capsules/{id}/pause", post(lifecycle::pause))
        .route("/v1/capsules/{id}/resume", post(lifecycle::resume))
        .route("/v1/capsules/{id}/ping", post(lifecycle::ping))
        .route("/v1/capsules/{id}/fork", post(lifecycle::fork))
        .route("/v1/capsules/{id}/rollback", post(lifecycle::rollback))
        .route("/v1/snapshots", post(snapshots::create).get(snapshots::list))
        .route("/v1/snapshots/{name}", delete(snapshots::delete))
        .route("/v1/templates", get(snapshots::list))
        .route("/v1/capsules/stats", get(metrics::stats))
        .route("/v1/capsules/usage", get(metrics::usage))
        .route("/v1/capsules/{id}/metrics", get(metrics::capsule))
        .route("/v1/capsules/{id}/logs", get(console::console))
        .route("/v1/events/stream", get(events::stream_events))
        .route("/v1/hosts", get(hosts::list))
        .merge(access())
        .route("/v1/capsules/{id}/exec", post(exec::exec))
        .route("/v1/capsules/{id}/exec/stream", get(ws::exec::stream))
        .route("/v1/capsules/{id}/processes", get(processes::list))
        .route("/v1/capsules/{id}/processes/{selector}", delete(processes::signal))
        .route("/v1/capsules/{id}/processes/{selector}/stream", get(ws::process::stream))
        .route("/v1/capsules/{id}/processes/{selector}/logs", get(processes::logs))
        .route("/v1/capsules/{id}/processes/{selector}/stdin", post(processes::stdin))
        .route("/v1/capsules/{id}/pty", get(ws::pty::stream))
        .merge(file_routes())
        .route("/v1/capsules/{id}/execute", post(execute::in_capsule))
        .layer(from_fn_with_state(app.clone(), audit::layer))
        .layer(from_fn_with_state(app.clone(), auth::layer))
        .layer(from_fn_with_state(app.clone(), middleware::admit))
}

/// Keys, teams, users, and what was changed.
fn access() -> Router<App> {
    Router::new()
        .route("/v1/api-keys", post(keys::create).get(keys::list))
        .route("/v1/api-keys/{id}", delete(keys::revoke))
        .route("/v1/audit-logs", get(audit_logs::list))
        .route("/v1/admin/teams", post(admin::create_team).get(admin::teams))
        .route("/v1/admin/teams/{id}", delete(admin::delete_team))
        .route("/v1/admin/teams/{id}/api-keys", post(admin::create_team_key).get(admin::team_keys))
        .route("/v1/admin/teams/{id}/members", get(admin::members))
        .route("/v1/admin/teams/{id}/members/{user}", put(admin::set_member).delete(admin::remove_member))
        .route("/v1/admin/users", post(admin::create_user).get(admin::users))
        .route("/v1/admin/users/{id}", delete(admin::delete_user))
}

/// Uploads have limits of their own, so the framework's is off.
fn file_routes() -> Router<App> {
    Router::new()
        .route("/v1/capsules/{id}/files/write", post(files::upload::write))
        .route("/v1/capsules/{id}/files/stream/write", post(files::upload::write_stream))
        .route("/v1/capsules/{id}/files/read", post(files::read))
        .route("/v1/capsules/{id}/files/stream/read", post(files::read))
        .route("/v1/capsules/{id}/files/list", post(files::list))
        .route("/v1/capsules/{id}/files/mkdir", post(files::mkdir))
        .route("/v1/capsules/{id}/files/remove", post(files::remove))
        .route("/v1/capsules/{id}/files/stat", post(files::stat))
        .route("/v1/capsules/{id}/files/move", post(files::r#move))
        .route("/v1/capsules/{id}/files/chmod", post(files::chmod))
        .route("/v1/capsules/{id}/files/watch", get(ws::watch::stream))
        .layer(DefaultBodyLimit::disable())
}

/// Ports by path. They look at the caller themselves: some are open to everybody.
fn port_routes() -> Router<App> {
    Router::new()
        .route("/v1/capsules/{id}/ports/{port}", any(ports::by_path))
        .route("/v1/capsules/{id}/ports/{port}/", any(ports::by_path))
        .route("/v1/capsules/{id}/ports/{port}/{*path}", any(ports::by_path))
        .layer(DefaultBodyLimit::disable())
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
