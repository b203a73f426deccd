//! `GET /v1/capsules/{id}/files/watch`: what changes below a path, as it happens.
//!
//! First message `{"type":"start","path","recursive"=false,"user"=""}`; then `{"type":"watching"}`, and for each change
//! `{"type":"created"|"modified"|"removed"|"renamed"|"attributes","path","new_path"?,"directory"}`. `{"type":"lost"}`
//! says that changes came faster than they were read.

use super::{Context, Gone, Heard, Opening, Session, follow, order};
use crate::{
    app::App,
    error::ApiError,
    json::{fields::Fields, rules},
    ops::files,
};
use axum::{extract::State, response::Response};
use hearth_proto::wire::files::{WatchEvent, WatchKind, WatchRequest};
use serde_json::{Value, json};

/// The session.
pub(crate) async fn stream(State(_): State<App>, opening: Opening) -> Result<Response, ApiError> {
    opening.run(follow::refuse, serve).await
}

async fn serve(context: Context, mut session: Session) -> Session {
    let Context { app, place } = context;
    let asked = match order(&mut session).await {
        Ok((kind, mut fields)) if kind == "start" => read(&mut fields),
        Ok(_) => Err(ApiError::invalid("type: the first message must be start")),
        Err(Some(fault)) => Err(ApiError::invalid(fault)),
        Err(None) => return session,
    };
    let opened = match asked {
        Ok(request) => place.guest(&app).watch(request).await.map_err(files::refusal),
        Err(error) => Err(error),
    };
    let mut events = match opened {
        Ok(events) => events,
        Err(error) => {
            follow::fault(&mut session, error.to_string()).await;
            return session;
        }
    };
    loop {
        let event = tokio::select! {
            biased;
            () = app.stop.cancelled() => return session,
            heard = session.receiver.next() => match heard {
                Ok(Heard::Quiet) if session.sender.ping().await.is_ok() => continue,
                Ok(Heard::Message(_)) => continue,
                Ok(Heard::Quiet) | Err(Gone) => return session,
            },
            event = events.next() => event,
        };
        let sent = match event {
            Ok(Some(event)) => session.sender.json(&message(&event)).await,
            Ok(None) => return session,
            Err(error) => {
                follow::fault(&mut session, files::refusal(error).to_string()).await;
                return session;
            }
        };
        if sent.is_err() {
            return session;
        }
    }
}

fn read(fields: &mut Fields) -> Result<WatchRequest, ApiError> {
    let path = rules::path(fields, "path")?;
    if path.is_empty() {
        return Err(fields.fault("path", "required"));
    }
    Ok(WatchRequest {
        path: path.into_bytes(),
        user: rules::user(fields)?,
        recursive: fields.flag("recursive")?.unwrap_or(false),
    })
}

fn message(event: &WatchEvent) -> Value {
    let kind = match event.kind() {
        WatchKind::Watching => return json!({ "type": "watching" }),
        WatchKind::Lost => return json!({ "type": "lost" }),
        WatchKind::Created => "created",
        WatchKind::Modified => "modified",
        WatchKind::Removed => "removed",
        WatchKind::Renamed => "renamed",
        WatchKind::Attributes => "attributes",
        WatchKind::Unspecified => "other",
    };
    let mut message =
        json!({ "type": kind, "path": files::shown_path(&event.path), "directory": event.directory });
    if !event.new_path.is_empty() {
        message["new_path"] = files::shown_path(&event.new_path).into();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_as_documented() {
        let event = WatchEvent {
            kind: WatchKind::Renamed.into(),
            path: b"/a".to_vec(),
            new_path: b"/b".to_vec(),
            directory: true,
        };
        let expected = json!({ "type": "renamed", "path": "/a", "new_path": "/b", "directory": true });
        assert_eq!(message(&event), expected);
        assert_eq!(
            message(&WatchEvent { kind: WatchKind::Lost.into(), ..WatchEvent::default() })["type"],
            "lost"
        );
    }
}
