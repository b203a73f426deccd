//! `GET /v1/capsules/{id}/processes/{pid|tag}/stream`: follows a process that runs already. What it wrote before comes
//! first, unless `?replay=false`.

use super::{Context, Opening, Session, follow};
use crate::{app::App, error::ApiError, json::query::Query, ops::processes, v1::processes::SelectorPath};
use axum::{extract::State, response::Response};
use hearth_proto::wire::process::Selector;

/// The session.
pub(crate) async fn stream(
    State(_): State<App>,
    SelectorPath { process, .. }: SelectorPath,
    mut query: Query,
    opening: Opening,
) -> Result<Response, ApiError> {
    let replay = query.flag("replay")?.unwrap_or(true);
    opening.run(follow::refuse, move |context, session| serve(context, session, process, replay)).await
}

async fn serve(context: Context, mut session: Session, process: Selector, replay: bool) -> Session {
    let Context { app, place } = context;
    let (attached, events) = match processes::attach(&app, &place, process.clone(), replay).await {
        Ok(attached) => attached,
        Err(error) => {
            follow::fault(&mut session, error.to_string()).await;
            return session;
        }
    };
    let info = attached.process.unwrap_or_default();
    let message = follow::Message::Start { pid: info.pid, tag: info.tag, truncated: attached.truncated };
    if session.sender.json(&message).await.is_ok() {
        follow::follow(&app, &place, &process, events, &mut session).await;
    }
    session
}
