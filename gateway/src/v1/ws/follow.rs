//! The messages by which a process's output is followed: `start`, `stdout`, `stderr`, `exit`, `error`.

use super::{Gone, Heard, Incoming, Session};
use crate::{
    app::App,
    error::ApiError,
    json::fields::Fields,
    ops::{guest::Place, processes},
    text::Utf8,
    upstream::stream::Events,
};
use hearth_proto::wire::process::{
    AttachEvent, Exited, Selector, SignalRequest, WriteInputRequest, attach_event::Event,
};
use serde::Serialize;

/// What a session that follows a process sends.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Message {
    Start {
        pid: u32,
        tag: String,
        /// The beginning of its output is no longer there.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    },
    Stdout {
        data: String,
    },
    Stderr {
        data: String,
    },
    Exit {
        exit_code: i32,
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        oom: Option<bool>,
    },
    Error {
        data: String,
    },
}

/// A refusal as a message.
pub(crate) fn refuse(error: &ApiError) -> serde_json::Value {
    serde_json::json!({ "type": "error", "data": error.to_string() })
}

/// Sends a fault that ends the session. The client may be gone already.
pub(crate) async fn fault(session: &mut Session, data: impl Into<String>) {
    let _left = session.sender.json(&Message::Error { data: data.into() }).await;
}

/// As in the compatible API: -1 for a process that a signal ended, whose number is beside it.
pub(crate) fn exit_of(exited: &Exited) -> Message {
    let (exit_code, signal) = processes::ending(exited);
    Message::Exit { exit_code, signal, oom: exited.oom.then_some(true) }
}

/// Follows a process until it ends, the client leaves, or Hearth stops. A client that reads slowly slows the process
/// down; the guest cuts one off that does not read at all.
pub(crate) async fn follow(
    app: &App,
    place: &Place,
    process: &Selector,
    mut events: Events<AttachEvent>,
    session: &mut Session,
) {
    let (mut stdout, mut stderr) = (Utf8::default(), Utf8::default());
    loop {
        let event = tokio::select! {
            // What the client says goes first: a `stop` must not wait behind endless output.
            biased;
            () = app.stop.cancelled() => return,
            heard = session.receiver.next() => match heard {
                Ok(Heard::Quiet) => {
                    if session.sender.ping().await.is_err() { return; }
                    continue;
                }
                Ok(Heard::Message(message)) => {
                    if act(app, place, process, message, session).await.is_err() { return; }
                    continue;
                }
                Err(Gone) => return,
            },
            event = events.next() => event,
        };
        let sent = match event {
            Ok(Some(event)) => match event.event {
                Some(Event::Stdout(bytes) | Event::Terminal(bytes)) => {
                    text(session, stdout.push(&bytes), |data| Message::Stdout { data }).await
                }
                Some(Event::Stderr(bytes)) => {
                    text(session, stderr.push(&bytes), |data| Message::Stderr { data }).await
                }
                Some(Event::Exited(exited)) => {
                    let rest = text(session, stdout.finish(), |data| Message::Stdout { data }).await;
                    if rest.is_ok()
                        && text(session, stderr.finish(), |data| Message::Stderr { data }).await.is_ok()
                    {
                        let _left = session.sender.json(&exit_of(&exited)).await;
                    }
                    return;
                }
                Some(Event::Attached(_)) | None => Ok(()),
            },
            Ok(None) => return fault(session, "the stream ended without the process's end").await,
            Err(error) => return fault(session, processes::broken(error).to_string()).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn text(
    session: &mut Session,
    data: String,
    message: impl FnOnce(String) -> Message,
) -> Result<(), Gone> {
    if data.is_empty() { Ok(()) } else { session.sender.json(&message(data)).await }
}

/// What a client can ask for while it follows: `stop`, `signal`, `stdin`.
async fn act(
    app: &App,
    place: &Place,
    process: &Selector,
    message: Incoming,
    session: &mut Session,
) -> Result<(), Gone> {
    let (kind, mut fields) = match message {
        Incoming::Object(kind, fields) => (kind, fields),
        Incoming::Bytes(_) => return notice(session, "messages must be JSON objects").await,
        Incoming::Junk(fault) => return notice(session, &fault).await,
    };
    let guest = place.guest(app);
    let done = match kind.as_str() {
        "stop" => {
            let request = SignalRequest { process: Some(process.clone()), signal: processes::SIGKILL };
            guest.signal(request).await.map(drop)
        }
        "signal" => match signal(&mut fields) {
            Ok(signal) => {
                guest.signal(SignalRequest { process: Some(process.clone()), signal }).await.map(drop)
            }
            Err(fault) => return notice(session, &fault.to_string()).await,
        },
        "stdin" => match input(&mut fields) {
            Ok((data, close)) => {
                let request = WriteInputRequest { process: Some(process.clone()), data, close };
                guest.write(request).await.map(drop)
            }
            Err(fault) => return notice(session, &fault.to_string()).await,
        },
        // An answer to a ping of another protocol version.
        "pong" => return Ok(()),
        _ => return notice(session, "type: must be stop, signal or stdin").await,
    };
    match done {
        Ok(()) => Ok(()),
        Err(error) => notice(session, &processes::unknown_process(error).to_string()).await,
    }
}

/// A fault of one message. It does not end the session, but the compatible clients stop reading at it, as they should.
async fn notice(session: &mut Session, fault: &str) -> Result<(), Gone> {
    session.sender.json(&Message::Error { data: fault.to_owned() }).await
}

/// The field `signal`.
fn signal(fields: &mut Fields) -> Result<i32, ApiError> {
    let name = fields.required_text("signal")?;
    processes::signal_number(&name).ok_or_else(|| fields.fault("signal", processes::SIGNAL_FAULT))
}

/// The fields `data` and `close`.
fn input(fields: &mut Fields) -> Result<(Vec<u8>, bool), ApiError> {
    let data = fields.text("data")?.unwrap_or_default().into_bytes();
    Ok((data, fields.flag("close")?.unwrap_or(false)))
}
