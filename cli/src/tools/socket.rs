//! A WebSocket session of the API, from its client's side.

use crate::client::Client;
use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Towards the service.
pub struct Sender(SplitSink<Stream, Message>);

/// From the service.
pub struct Receiver(SplitStream<Stream>);

/// What the service says.
#[derive(Debug)]
pub enum Heard {
    /// A JSON message.
    Json(Value),
    /// Bytes of a terminal.
    Bytes(Bytes),
    /// The session is over.
    End,
}

/// Opens the session at `path`.
pub async fn open(client: &Client, path: &str) -> anyhow::Result<(Sender, Receiver)> {
    let Some(rest) = client.url().strip_prefix("http://") else {
        bail!("{}: only http:// addresses are possible here", client.url());
    };
    let mut request = format!("ws://{rest}{path}").into_client_request().context("the address")?;
    request.headers_mut().insert("X-API-Key", client.key().parse().context("the API key")?);
    match connect_async(request).await {
        Ok((stream, _)) => {
            let (sink, stream) = stream.split();
            Ok((Sender(sink), Receiver(stream)))
        }
        Err(Error::Http(refused)) => {
            let body = refused.body().as_deref().unwrap_or_default();
            let value: Value = serde_json::from_slice(body).unwrap_or_default();
            let message = value.pointer("/error/message").and_then(Value::as_str);
            bail!("{}", message.map_or_else(|| refused.status().to_string(), str::to_owned))
        }
        Err(error) => Err(error).context(format!("no Hearth at {} (hearth up starts one)", client.url())),
    }
}

impl Sender {
    /// Sends a JSON message.
    pub async fn json(&mut self, message: &Value) -> anyhow::Result<()> {
        self.0.send(Message::text(message.to_string())).await.context("the service hung up")
    }

    /// Sends bytes of a terminal.
    pub async fn bytes(&mut self, bytes: Vec<u8>) -> anyhow::Result<()> {
        self.0.send(Message::binary(bytes)).await.context("the service hung up")
    }
}

impl Receiver {
    /// The next message.
    ///
    /// # Cancel safety
    /// Cancel safe: a message is either returned or still in the stream.
    pub async fn next(&mut self) -> anyhow::Result<Heard> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text).map(Heard::Json).context("a message that is no JSON");
                }
                Some(Ok(Message::Binary(bytes))) => return Ok(Heard::Bytes(bytes)),
                Some(Ok(Message::Close(_))) | None => return Ok(Heard::End),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Err(error).context("the connection broke"),
            }
        }
    }
}

/// The exit status of a process as this program's own.
pub fn exit_status(message: &Value) -> u8 {
    let signal = message.get("signal").and_then(Value::as_i64);
    let code = message.get("exit_code").and_then(Value::as_i64).unwrap_or(1);
    let status = signal.map_or(code, |signal| 128 + signal);
    u8::try_from(status).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_signal_is_told_as_a_shell_does_it() {
        assert_eq!(exit_status(&json!({ "exit_code": 3 })), 3);
        assert_eq!(exit_status(&json!({ "exit_code": -1, "signal": 9 })), 137);
        assert_eq!(exit_status(&json!({ "exit_code": -1 })), 1);
    }
}
