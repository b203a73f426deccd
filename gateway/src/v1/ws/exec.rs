//! `GET /v1/capsules/{id}/exec/stream`: runs a command and streams what it writes.
//!
//! The process is one like those in the background: when the client leaves without `stop`, it goes on, and its pid and
//! tag from the first message find it again.

use super::{Context, Opening, Session, follow, order};
use crate::{
    app::App,
    error::ApiError,
    json::{fields::Fields, rules},
    ops::processes::{self, Background},
    v1::exec::read_command,
};
use axum::{extract::State, response::Response};
use hearth_proto::wire::process::{Selector, selector::By};

/// The session.
pub(crate) async fn stream(State(_): State<App>, opening: Opening) -> Result<Response, ApiError> {
    opening.run(follow::refuse, serve).await
}

async fn serve(context: Context, mut session: Session) -> Session {
    let Context { app, place } = context;
    let begun = match order(&mut session).await {
        Ok((kind, mut fields)) if kind == "start" => read(&mut fields),
        Ok(_) => Err(ApiError::invalid("type: the first message must be start")),
        Err(Some(fault)) => Err(ApiError::invalid(fault)),
        Err(None) => return session,
    };
    let started = match begun {
        Ok(background) => processes::start(&app, &place, background).await,
        Err(error) => Err(error),
    };
    let started = match started {
        Ok(started) => started,
        Err(error) => {
            follow::fault(&mut session, error.to_string()).await;
            return session;
        }
    };
    let message = follow::Message::Start { pid: started.pid, tag: started.tag.clone(), truncated: false };
    if session.sender.json(&message).await.is_err() {
        return session;
    }
    let process = Selector { by: Some(By::Tag(started.tag)) };
    match processes::attach(&app, &place, process.clone(), true).await {
        Ok((_, events)) => follow::follow(&app, &place, &process, events, &mut session).await,
        Err(error) => follow::fault(&mut session, error.to_string()).await,
    }
    session
}

/// Standard input is empty unless the client says that it will write to it.
fn read(fields: &mut Fields) -> Result<Background, ApiError> {
    let keep_stdin = fields.flag("keep_stdin")?.unwrap_or(false);
    Ok(Background { tag: rules::tag(fields)?, command: read_command(fields)?, keep_stdin, terminal: None })
}
