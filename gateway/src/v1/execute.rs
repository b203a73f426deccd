//! `POST /v1/execute` and `POST /v1/capsules/{id}/execute`.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    idempotency::{Entry, Key, Outcome},
    json::body::JsonBody,
    middleware::Scope,
    ops::{
        one_shot::{self, Wish},
        run::{self, Run},
    },
    v1::{CapsulePath, run_answer::RunAnswer, run_request},
};
use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};
use std::time::Instant;
use tracing::Instrument;

/// Runs code in a fresh capsule. With an `Idempotency-Key` the run goes on when its client goes away, so that the same
/// request finds its answer; without one it is interrupted.
pub(crate) async fn one_shot(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    takes_json(&headers)?;
    let (wish, run) = run_request::one_shot(&mut body.fields()?, &app.config)?;
    let Some(key) = Key::of(&headers, caller.team)? else {
        return Ok(ok(answer(&app, &scope, &wish, &run).await?));
    };
    let fingerprint = Sha256::digest(body.bytes()).into();
    match app.idempotency.enter(key, fingerprint, Instant::now())? {
        Entry::Done(answer) => Ok(replayed(answer)),
        Entry::Running(waiter) => Ok(replayed(waiter.outcome().await?)),
        Entry::First(slot) => {
            let work = {
                let app = app.clone();
                async move {
                    let outcome = tokio::select! {
                        // An answer that is there is not thrown away.
                        biased;
                        outcome = answer(&app, &scope, &wish, &run) => outcome,
                        () = app.stopped() => Err(ApiError::unavailable("Hearth is shutting down; try again")),
                    };
                    slot.finish(&outcome, Instant::now());
                    outcome
                }
            };
            app.tasks.spawn(work.in_current_span()).await.map_err(ApiError::internal)?.map(ok)
        }
    }
}

/// Runs code in the default context of a running capsule.
pub(crate) async fn in_capsule(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Json<RunAnswer>, ApiError> {
    takes_json(&headers)?;
    let run = run_request::in_capsule(&mut body.fields()?, &app.config)?;
    let answer = run::in_capsule(&app, &scope, caller, capsule, &run).await?;
    Ok(Json(RunAnswer::new(answer, &scope)))
}

async fn answer(app: &App, scope: &Scope, wish: &Wish, run: &Run) -> Outcome {
    let answer = one_shot::execute(app, scope, wish, run).await?;
    serde_json::to_vec(&RunAnswer::new(answer, scope)).map(Bytes::from).map_err(ApiError::internal)
}

fn ok(answer: Bytes) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], answer).into_response()
}

fn replayed(answer: Bytes) -> Response {
    let mut response = ok(answer);
    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    response
}

/// Refuses callers who accept event streams only: those are not offered yet.
fn takes_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut accepted =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    if accepted.peek().is_none() || accepted.flat_map(|value| value.split(',')).any(is_json_range) {
        return Ok(());
    }
    let message = "Accept: only application/json is available yet";
    Err(ApiError::invalid(message).with_status(StatusCode::NOT_ACCEPTABLE))
}

fn is_json_range(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let range = parts.next().unwrap_or_default();
    // A weight of zero means "not this" (RFC 9110, 12.4.2).
    let refused = parts.any(|part| {
        let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
        weight.is_some_and(|weight| weight.parse::<f32>().is_ok_and(|weight| weight == 0.0))
    });
    !refused
        && ["*/*", "application/*", "application/json"].iter().any(|json| range.eq_ignore_ascii_case(json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_callers_who_take_json_are_served() {
        let takes = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_str(accept).expect("a header value"));
            takes_json(&headers).is_ok()
        };
        assert!(takes_json(&HeaderMap::new()).is_ok());
        for accept in
            ["*/*", "application/json", "text/event-stream, application/json;q=0.9", "application/*"]
        {
            assert!(takes(accept), "{accept}");
        }
        for accept in [
            "text/event-stream",
            "application/x-ndjson",
            "text/html, image/png",
            "application/json;q=0, text/event-stream",
        ] {
            assert!(!takes(accept), "{accept}");
        }
    }
}
