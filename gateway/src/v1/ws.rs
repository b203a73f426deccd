//! WebSockets: who may open one, and how messages go over it. Text messages are JSON; every session ends with a close
//! frame.
//!
//! A caller that sends a key with the request is checked before the upgrade, and so is the capsule: a wrong one is an
//! HTTP answer. A browser cannot send a key: its first message is `{"type":"auth","token":"<key>"}`, and refusals are
//! messages of the session's own form.

pub(crate) mod exec;
pub(crate) mod follow;
pub(crate) mod process;
pub(crate) mod pty;
pub(crate) mod watch;

use crate::{
    app::App,
    auth,
    auth::Caller,
    error::ApiError,
    json::fields::Fields,
    middleware::{Scope, route_of},
    ops::guest::Place,
    v1::CapsulePath,
};
use axum::{
    extract::{
        FromRequestParts,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use hearth_proto::id::CapsuleId;
use http::{Method, request::Parts};
use serde::Serialize;
use std::{future::Future, time::Duration};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tracing::Instrument;

/// For the first message, as in the compatible API.
const FIRST_DEADLINE: Duration = Duration::from_secs(5);
/// A client that takes nothing for so long is cut off.
const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// How often a quiet client is asked whether it is there, and how often without an answer.
const PING_EVERY: Duration = Duration::from_secs(20);
const PINGS_MISSED_MAX: u32 = 3;
/// Largest message of a client: a paste into a terminal, a command line.
const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// Waiting for the client's half of the goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// RFC 6455, section 7.4.1.
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const POLICY: u16 = 1008;

/// The session is over: its client left, or does not take what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone")]
pub(crate) struct Gone;

/// What a client sent.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A JSON object, with its `type`.
    Object(String, Fields),
    Bytes(Bytes),
    /// Not one of these; the session goes on.
    Junk(String),
}

/// Both directions of a session.
pub(crate) struct Session {
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

/// Towards the client.
pub(crate) struct Sender {
    sink: SplitSink<WebSocket, Message>,
}

/// From the client.
pub(crate) struct Receiver {
    stream: SplitStream<WebSocket>,
    quiet: Interval,
    missed: u32,
}

/// What happened on the client's side.
#[derive(Debug)]
pub(crate) enum Heard {
    Message(Incoming),
    /// It has been quiet: send a ping.
    Quiet,
}

impl Sender {
    /// Sends a JSON message.
    pub(crate) async fn json(&mut self, message: &impl Serialize) -> Result<(), Gone> {
        let text = serde_json::to_string(message).map_err(|_| Gone)?;
        self.raw(Message::text(text)).await
    }

    /// Sends bytes.
    pub(crate) async fn bytes(&mut self, bytes: impl Into<Bytes>) -> Result<(), Gone> {
        self.raw(Message::binary(bytes.into())).await
    }

    /// Asks whether the client is there.
    pub(crate) async fn ping(&mut self) -> Result<(), Gone> {
        self.raw(Message::Ping(Bytes::new())).await
    }

    async fn raw(&mut self, message: Message) -> Result<(), Gone> {
        match timeout(SEND_DEADLINE, self.sink.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }
}

impl Receiver {
    /// The next thing that the client does.
    ///
    /// # Cancel safety
    /// Cancel safe: a message is either returned or still in the stream.
    pub(crate) async fn next(&mut self) -> Result<Heard, Gone> {
        loop {
            let message = tokio::select! {
                message = self.stream.next() => message,
                _ = self.quiet.tick() => {
                    self.missed += 1;
                    return if self.missed > PINGS_MISSED_MAX { Err(Gone) } else { Ok(Heard::Quiet) };
                }
            };
            self.missed = 0;
            self.quiet.reset();
            match message {
                Some(Ok(Message::Text(text))) => return Ok(Heard::Message(object(text.as_bytes()))),
                Some(Ok(Message::Binary(bytes))) => return Ok(Heard::Message(Incoming::Bytes(bytes))),
                // Pings are answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Gone),
            }
        }
    }

    /// The first message, which must come soon.
    async fn first(&mut self) -> Result<Incoming, Gone> {
        let first = async {
            loop {
                if let Heard::Message(message) = self.next().await? {
                    return Ok(message);
                }
            }
        };
        timeout(FIRST_DEADLINE, first).await.unwrap_or(Err(Gone))
    }
}

fn object(text: &[u8]) -> Incoming {
    let parsed = Fields::parse(text).and_then(|mut fields| Ok((fields.required_text("type")?, fields)));
    match parsed {
        Ok((kind, fields)) => Incoming::Object(kind, fields),
        Err(error) => Incoming::Junk(error.to_string()),
    }
}

impl Session {
    fn new(socket: WebSocket) -> Self {
        let (sink, stream) = socket.split();
        let mut quiet = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        quiet.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { sender: Sender { sink }, receiver: Receiver { stream, quiet, missed: 0 } }
    }

    /// Ends the session in order: a close frame, and a moment for the client's.
    async fn close(mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame { code, reason: reason.into() };
        if self.sender.raw(Message::Close(Some(frame))).await.is_ok() {
            let _ = timeout(GOODBYE, async { while self.receiver.next().await.is_ok() {} }).await;
        }
    }
}

/// A request for a session about one capsule.
pub(crate) struct Opening {
    app: App,
    scope: Scope,
    capsule: CapsuleId,
    /// Absent: the first message tells.
    caller: Option<Caller>,
    route: String,
    upgrade: WebSocketUpgrade,
}

impl FromRequestParts<App> for Opening {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        // The layer has checked the key that was sent, if one was.
        let caller = parts.extensions.get::<Caller>().copied();
        let route = route_of(&parts.extensions).map(str::to_owned);
        let CapsulePath(capsule) = CapsulePath::from_request_parts(parts, app).await?;
        let scope = Scope::of(&parts.extensions)?;
        let upgrade = WebSocketUpgrade::from_request_parts(parts, app)
            .await
            .map_err(|_| ApiError::invalid("this route is a WebSocket: send an upgrade request (RFC 6455)"))?
            .max_message_size(MESSAGE_BYTES_MAX)
            .max_frame_size(MESSAGE_BYTES_MAX);
        Ok(Self { app: app.clone(), scope, capsule, caller, route: route.unwrap_or_default(), upgrade })
    }
}

/// What a session works with.
pub(crate) struct Context {
    pub(crate) app: App,
    pub(crate) place: Place,
}

impl Opening {
    /// Upgrades, and runs `serve` for as long as the session lasts. `refuse` makes a refusal a message of the session's
    /// form. `serve` says whether it ended in order.
    pub(crate) async fn run<F>(
        self,
        refuse: fn(&ApiError) -> serde_json::Value,
        serve: impl FnOnce(Context, Session) -> F + Send + 'static,
    ) -> Result<Response, ApiError>
    where
        F: Future<Output = Session> + Send + 'static,
    {
        let Self { app, scope, capsule, caller, route, upgrade } = self;
        let permit = app.stream_permit()?;
        let known = match caller {
            Some(caller) => Some(Place::of(&app, &scope, caller, capsule).await?),
            None => None,
        };
        let tasks = app.tasks.clone();
        let session = move |socket: WebSocket| async move {
            let mut session = Session::new(socket);
            let place = match known {
                Some(place) => Ok(place),
                None => introduce(&app, &scope, capsule, &route, &mut session).await,
            };
            let stop = app.stop.clone();
            match place {
                Ok(place) => {
                    let session = serve(Context { app, place }, session).await;
                    let (code, reason) =
                        if stop.is_cancelled() { (GOING_AWAY, "shutting down") } else { (NORMAL, "") };
                    session.close(code, reason).await;
                }
                Err(Some(error)) => {
                    let _left = session.sender.json(&refuse(&error)).await;
                    session.close(POLICY, "refused").await;
                }
                Err(None) => session.close(POLICY, "no first message").await,
            }
            drop(permit);
        };
        Ok(upgrade.on_upgrade(move |socket| async move {
            // On our own tracker, so that a shutdown waits for the goodbye.
            let _ended = tasks.spawn(session(socket).in_current_span()).await;
        }))
    }
}

/// The caller tells who it is by its first message. None: it left, or said nothing.
async fn introduce(
    app: &App,
    scope: &Scope,
    capsule: CapsuleId,
    route: &str,
    session: &mut Session,
) -> Result<Place, Option<ApiError>> {
    let first = session.receiver.first().await.map_err(|Gone| None)?;
    let Incoming::Object(kind, mut fields) = first else {
        return Err(Some(auth::unauthorized("send {\"type\":\"auth\",\"token\":\"<API key>\"} first")));
    };
    if kind != "auth" {
        return Err(Some(auth::unauthorized("send {\"type\":\"auth\",\"token\":\"<API key>\"} first")));
    }
    let token = fields.required_text("token").map_err(Some)?;
    let caller = auth::enter(app, &token, &Method::GET, route).await.map_err(Some)?;
    Place::of(app, scope, caller, capsule).await.map_err(Some)
}

/// The first message of a session that has begun: the order what to do.
pub(crate) async fn order(session: &mut Session) -> Result<(String, Fields), Option<String>> {
    match session.receiver.first().await {
        Ok(Incoming::Object(kind, fields)) => Ok((kind, fields)),
        Ok(Incoming::Bytes(_)) => Err(Some("the first message must be a JSON object".to_owned())),
        Ok(Incoming::Junk(fault)) => Err(Some(fault)),
        Err(Gone) => Err(None),
    }
}
