//! `GET /v1/capsules/{id}/pty`: a terminal.
//!
//! Clients of two generations speak here, and their first messages are the same. The older ones send and take terminal
//! bytes as base64 in JSON, the newer ones as binary messages. Only the newer answer a `ping` message with `pong`, so one
//! is sent right after `started`, and output waits for the first sign: `pong` or a binary message, else `input`, else a
//! moment without either, which means the older form. A later sign changes the form. Clients that know us say it:
//! `"encoding": "binary"` or `"base64"` in the first message.

use super::{Context, Gone, Heard, Incoming, Opening, Sender, Session, order};
use crate::{
    app::App,
    error::ApiError,
    json::{fields::Fields, rules},
    ops::{
        guest::Place,
        processes::{self, Background},
    },
    upstream::stream::Events,
    v1::exec::read_command,
};
use axum::{extract::State, response::Response};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hearth_proto::wire::process::{
    AttachEvent, Attached, ResizeRequest, Selector, SignalRequest, Terminal, WriteInputRequest,
    attach_event::Event, selector::By,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

/// How long output waits for a sign of the client's form.
const SIGN_DEADLINE: Duration = Duration::from_millis(700);
/// As in the compatible API.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Typed and pasted, not yet taken by the program. The guest gives each a deadline.
const INPUTS_MAX: usize = 64;
/// Bytes of one write to the guest.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// How terminal bytes travel to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Unknown,
    Binary,
    Base64,
}

/// The session.
pub(crate) async fn stream(State(_): State<App>, opening: Opening) -> Result<Response, ApiError> {
    opening.run(fatal_of, serve).await
}

fn fatal_of(error: &ApiError) -> Value {
    json!({ "type": "error", "data": error.to_string(), "fatal": true })
}

async fn serve(context: Context, mut session: Session) -> Session {
    let Context { app, place } = context;
    let begun = match order(&mut session).await {
        Ok((kind, fields)) => begin(&app, &place, &kind, fields).await,
        Err(Some(fault)) => Err(ApiError::invalid(fault)),
        Err(None) => return session,
    };
    let (attached, events, encoding) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let _left = session.sender.json(&fatal_of(&error)).await;
            return session;
        }
    };
    let info = attached.process.unwrap_or_default();
    let started =
        json!({ "type": "started", "tag": info.tag, "pid": info.pid, "truncated": attached.truncated });
    let process = Selector { by: Some(By::Tag(info.tag)) };
    if session.sender.json(&started).await.is_err()
        || encoding == Encoding::Unknown && session.sender.json(&json!({ "type": "ping" })).await.is_err()
    {
        return session;
    }
    run(&app, &place, &process, events, encoding, session).await
}

/// Starts a terminal, or finds one; either way attaches with what was kept of its output.
async fn begin(
    app: &App,
    place: &Place,
    kind: &str,
    mut fields: Fields,
) -> Result<(Attached, Events<AttachEvent>, Encoding), ApiError> {
    let encoding = match fields.text("encoding")?.as_deref() {
        None => Encoding::Unknown,
        Some("binary") => Encoding::Binary,
        Some("base64") => Encoding::Base64,
        Some(_) => return Err(fields.fault("encoding", "must be binary or base64")),
    };
    let tag = match kind {
        "start" => processes::start(app, place, read(fields)?).await?.tag,
        "connect" => {
            let tag = rules::tag(&mut fields)?;
            if tag.is_empty() { return Err(fields.fault("tag", "required")) } else { tag }
        }
        _ => return Err(ApiError::invalid("type: the first message must be start or connect")),
    };
    let (attached, events) = processes::attach(app, place, Selector { by: Some(By::Tag(tag)) }, true).await?;
    if !attached.process.as_ref().is_some_and(|process| process.terminal) {
        return Err(ApiError::invalid("tag: this process has no terminal"));
    }
    Ok((attached, events, encoding))
}

fn read(mut fields: Fields) -> Result<Background, ApiError> {
    let terminal = size(&mut fields)?;
    let program = fields.text("cmd")?.filter(|program| !program.is_empty());
    fields.set("cmd", program.as_deref().unwrap_or("/bin/bash"));
    let tag = rules::tag(&mut fields)?;
    Ok(Background { command: read_command(&mut fields)?, tag, keep_stdin: true, terminal: Some(terminal) })
}

fn size(fields: &mut Fields) -> Result<Terminal, ApiError> {
    let mut side = |name: &str| -> Result<u32, ApiError> {
        let number = fields.number(name, 0, u64::from(u16::MAX))?.unwrap_or(0);
        Ok(u32::try_from(number).unwrap_or(0))
    };
    Ok(Terminal { cols: side("cols")?, rows: side("rows")? })
}

/// What the client wants.
#[derive(Debug)]
enum Wish {
    Input(Bytes),
    Resize(Terminal),
    Kill,
    /// Only a sign of its form.
    Sign,
    Fault(String),
}

fn wish(message: Incoming) -> (Wish, Option<Encoding>) {
    match message {
        Incoming::Bytes(bytes) => (Wish::Input(bytes), Some(Encoding::Binary)),
        Incoming::Junk(fault) => (Wish::Fault(fault), None),
        Incoming::Object(kind, mut fields) => match kind.as_str() {
            "input" => match fields.required_text("data").map(|data| STANDARD.decode(data)) {
                Ok(Ok(bytes)) => (Wish::Input(bytes.into()), Some(Encoding::Base64)),
                Ok(Err(_)) => (Wish::Fault("data: not valid base64".to_owned()), None),
                Err(fault) => (Wish::Fault(fault.to_string()), None),
            },
            "resize" => match size(&mut fields) {
                Ok(Terminal { cols: 0, .. } | Terminal { rows: 0, .. }) => {
                    (Wish::Fault("cols and rows: must be from 1 to 65535".to_owned()), None)
                }
                Ok(terminal) => (Wish::Resize(terminal), None),
                Err(fault) => (Wish::Fault(fault.to_string()), None),
            },
            "kill" => (Wish::Kill, None),
            "pong" => (Wish::Sign, Some(Encoding::Binary)),
            _ => (Wish::Fault("type: must be input, resize, kill or pong".to_owned()), None),
        },
    }
}

/// Everything between the first message and the end.
async fn run(
    app: &App,
    place: &Place,
    process: &Selector,
    mut events: Events<AttachEvent>,
    mut encoding: Encoding,
    session: Session,
) -> Session {
    let Session { mut sender, mut receiver } = session;
    let sign_by = Instant::now() + SIGN_DEADLINE;
    let mut ping = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (inputs, typed) = mpsc::channel(INPUTS_MAX);
    // A program that does not read must hold up neither its output nor a resize or kill.
    let (faults, mut fault) = mpsc::channel(1);
    let typing = type_in(app, place, process, typed, faults);
    tokio::pin!(typing);
    loop {
        let sent = tokio::select! {
            biased;
            () = app.stop.cancelled() => break,
            heard = receiver.next(), if inputs.capacity() > 0 => match heard {
                Err(Gone) => break,
                Ok(Heard::Quiet) => sender.ping().await,
                Ok(Heard::Message(message)) => {
                    let (wish, sign) = wish(message);
                    encoding = match (encoding, sign) {
                        (_, Some(Encoding::Binary)) => Encoding::Binary,
                        (Encoding::Unknown, Some(sign)) => sign,
                        (known, _) => known,
                    };
                    obey(app, place, process, wish, &inputs, &mut sender).await
                }
            },
            Some(message) = fault.recv() => sender.json(&notice(&message)).await,
            () = &mut typing => Ok(()),
            () = sleep_until(sign_by), if encoding == Encoding::Unknown => {
                encoding = Encoding::Base64;
                Ok(())
            }
            event = events.next(), if encoding != Encoding::Unknown => match event {
                Ok(Some(AttachEvent { event: Some(Event::Exited(exited)) })) => {
                    let (code, _) = processes::ending(&exited);
                    let _left = sender.json(&json!({ "type": "exit", "exit_code": code })).await;
                    break;
                }
                Ok(Some(event)) => output(event, encoding, &mut sender).await,
                Ok(None) => break,
                Err(error) => {
                    let _left = sender.json(&fatal_of(&processes::broken(error))).await;
                    break;
                }
            },
            _ = ping.tick() => sender.json(&json!({ "type": "ping" })).await,
        };
        if sent.is_err() {
            break;
        }
    }
    Session { sender, receiver }
}

async fn output(event: AttachEvent, encoding: Encoding, sender: &mut Sender) -> Result<(), Gone> {
    let bytes = match event.event {
        Some(Event::Terminal(bytes) | Event::Stdout(bytes) | Event::Stderr(bytes)) => bytes,
        Some(Event::Attached(_) | Event::Exited(_)) | None => return Ok(()),
    };
    match encoding {
        Encoding::Binary => sender.bytes(bytes).await,
        Encoding::Base64 | Encoding::Unknown => {
            sender.json(&json!({ "type": "output", "data": STANDARD.encode(bytes) })).await
        }
    }
}

async fn obey(
    app: &App,
    place: &Place,
    process: &Selector,
    wish: Wish,
    inputs: &mpsc::Sender<Bytes>,
    sender: &mut Sender,
) -> Result<(), Gone> {
    let guest = place.guest(app);
    let done = match wish {
        Wish::Sign => return Ok(()),
        Wish::Fault(message) => return sender.json(&notice(&message)).await,
        Wish::Input(bytes) => {
            // There is room: a message is read only then, and only this place sends.
            let _room = inputs.try_send(bytes);
            return Ok(());
        }
        Wish::Resize(terminal) => {
            let request = ResizeRequest { process: Some(process.clone()), terminal: Some(terminal) };
            guest.resize(request).await.map(drop)
        }
        Wish::Kill => {
            let request = SignalRequest { process: Some(process.clone()), signal: processes::SIGKILL };
            guest.signal(request).await.map(drop)
        }
    };
    match done {
        Ok(()) => Ok(()),
        Err(error) => sender.json(&notice(&processes::unknown_process(error).to_string())).await,
    }
}

/// A fault that does not end the session.
fn notice(message: &str) -> Value {
    json!({ "type": "error", "data": message, "fatal": false })
}

/// Writes what was typed, in order, what waits together in one piece. Never ends before its session does.
async fn type_in(
    app: &App,
    place: &Place,
    process: &Selector,
    mut typed: mpsc::Receiver<Bytes>,
    faults: mpsc::Sender<String>,
) {
    let guest = place.guest(app);
    while let Some(first) = typed.recv().await {
        let mut data = first.to_vec();
        while data.len() < INPUT_BYTES_MAX
            && let Ok(more) = typed.try_recv()
        {
            data.extend_from_slice(&more);
        }
        for piece in data.chunks(INPUT_BYTES_MAX) {
            let request =
                WriteInputRequest { process: Some(process.clone()), data: piece.to_vec(), close: false };
            if let Err(error) = guest.write(request).await {
                // One that waits to be sent says enough.
                let _full = faults.try_send(processes::unknown_process(error).to_string());
                break;
            }
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Incoming {
        let mut fields = Fields::parse(text.as_bytes()).expect("an object");
        Incoming::Object(fields.required_text("type").expect("a type"), fields)
    }

    #[test]
    fn each_generation_of_clients_shows_its_form() {
        assert!(matches!(wish(Incoming::Bytes("ls".into())), (Wish::Input(_), Some(Encoding::Binary))));
        assert!(matches!(wish(object(r#"{"type":"pong"}"#)), (_, Some(Encoding::Binary))));
        let typed = wish(object(r#"{"type":"input","data":"bHM="}"#));
        assert!(matches!(typed, (Wish::Input(bytes), Some(Encoding::Base64)) if bytes == "ls"));
        for text in [r#"{"type":"kill"}"#, r#"{"type":"resize","cols":80,"rows":24}"#] {
            assert!(matches!(wish(object(text)), (Wish::Kill | Wish::Resize(_), None)), "{text}");
        }
    }

    #[test]
    fn a_terminal_runs_what_is_asked_for_and_else_a_shell() {
        let of = |text: &str| read(Fields::parse(text.as_bytes()).expect("an object")).expect("fine");
        assert_eq!(of(r#"{"cols":80}"#).command.program, "/bin/bash");
        assert_eq!(of(r#"{"cmd":"htop","rows":9}"#).command.program, "htop");
        assert_eq!(of(r#"{"cols":80,"rows":24}"#).terminal, Some(Terminal { cols: 80, rows: 24 }));
    }

    #[test]
    fn wrong_messages_are_faults_that_say_why() {
        for (text, says) in [
            (r#"{"type":"input","data":"?"}"#, "data: not valid base64"),
            (r#"{"type":"input"}"#, "data: required"),
            (r#"{"type":"resize","cols":0,"rows":5}"#, "cols and rows"),
            (r#"{"type":"resize","cols":70000,"rows":5}"#, "cols: must be from 0 to 65535"),
            (r#"{"type":"dance"}"#, "type: must be"),
        ] {
            let (Wish::Fault(fault), None) = wish(object(text)) else { panic!("{text}") };
            assert!(fault.starts_with(says), "{fault}");
        }
    }
}
