//! `GET /v1/events/stream`: what happens to the caller's capsules and snapshots, as server-sent events.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    middleware::Scope,
    v1::{capsule_body::CapsuleBody, rfc3339},
};
use axum::{
    Extension,
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt, stream};
use hearth_proto::wire::pool::CapsuleEvent;
use serde_json::{Value, json};
use std::{convert::Infallible, time::Duration};
use time::OffsetDateTime;
use tonic::Streaming;

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Events until the client leaves, Hearth stops, or the client does not keep up; it then connects and lists again.
pub(crate) async fn stream_events(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
) -> Result<Response, ApiError> {
    let permit = app.stream_permit()?;
    let news = app.pool.watch(Some(caller.team), &scope.request_id).await?;
    let stop = app.stop.clone().cancelled_owned();
    let events = stream::once(async { Ok::<_, Infallible>(event("connected", &connected())) })
        .chain(told(news))
        .map(move |event| {
            let _held = &permit;
            event
        })
        .take_until(stop);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("keepalive")).into_response())
}

/// pool-manager's events in public words. The stream ends where pool-manager's does.
fn told(news: Streaming<CapsuleEvent>) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    news.take_while(|news| {
        if let Err(status) = news {
            tracing::info!(reason = status.message(), "a stream of events ended");
        }
        std::future::ready(news.is_ok())
    })
    .filter_map(|news| {
        std::future::ready(news.ok().map(|news| {
            let body = body(news);
            let name = body["event"].as_str().unwrap_or("capsule.state.changed").to_owned();
            Ok(event(&name, &body))
        }))
    })
}

fn event(name: &str, body: &Value) -> Event {
    Event::default().event(name).data(body.to_string())
}

fn connected() -> Value {
    json!({ "event": "connected", "timestamp": rfc3339(OffsetDateTime::now_utc()) })
}

/// The public word of an event, and what it is about. Changes without a word of their own are changes of state.
fn word(event: &str) -> (&'static str, bool) {
    match event {
        "created" | "forked" => ("capsule.create", true),
        "paused" => ("capsule.pause", true),
        "resumed" => ("capsule.resume", true),
        "destroyed" => ("capsule.destroy", true),
        "snapshot_created" => ("template.snapshot.create", true),
        "snapshot_deleted" => ("template.snapshot.delete", true),
        _ => ("capsule.state.changed", false),
    }
}

fn body(news: CapsuleEvent) -> Value {
    let (name, action) = word(&news.event);
    let snapshot = name.starts_with("template.");
    let resource = match &news.capsule {
        _ if snapshot => json!({ "id": news.template, "type": "snapshot" }),
        Some(capsule) => json!({ "id": capsule.capsule_id, "type": "capsule" }),
        None => json!({ "type": "capsule" }),
    };
    let at = OffsetDateTime::from_unix_timestamp(news.at_ms.div_euclid(1_000));
    let mut body = json!({
        "event": name,
        "resource": resource,
        "metadata": { "change": news.event },
        "timestamp": rfc3339(at.unwrap_or(OffsetDateTime::UNIX_EPOCH)),
    });
    if action {
        body["outcome"] = "success".into();
    }
    if !news.reason.is_empty() {
        body["metadata"]["reason"] = news.reason.into();
    }
    if let Some(capsule) = news.capsule {
        body["sandbox"] = serde_json::to_value(CapsuleBody::listed(capsule)).unwrap_or_default();
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_proto::wire::pool::CapsuleRecord;

    #[test]
    fn events_read_as_clients_expect_them() {
        let capsule = CapsuleRecord { capsule_id: "cl-1".to_owned(), ..CapsuleRecord::default() };
        let news = CapsuleEvent {
            event: "paused".to_owned(),
            capsule: Some(capsule.clone()),
            at_ms: 1_777_716_000_000,
            reason: "idle".to_owned(),
            ..CapsuleEvent::default()
        };
        let told = body(news);
        assert_eq!((&told["event"], &told["outcome"]), (&"capsule.pause".into(), &"success".into()));
        assert_eq!(told["resource"], json!({ "id": "cl-1", "type": "capsule" }));
        assert_eq!((&told["metadata"]["reason"], &told["sandbox"]["id"]), (&"idle".into(), &"cl-1".into()));
        assert_eq!(told["timestamp"], "2026-05-02T10:00:00Z");
        let failed =
            CapsuleEvent { event: "failed".to_owned(), capsule: Some(capsule), ..Default::default() };
        let told = body(failed);
        assert_eq!((&told["event"], told.get("outcome")), (&"capsule.state.changed".into(), None));
        let snapshot = CapsuleEvent {
            event: "snapshot_created".to_owned(),
            template: "mine".to_owned(),
            ..CapsuleEvent::default()
        };
        assert_eq!(body(snapshot)["resource"]["id"], "mine");
    }
}
