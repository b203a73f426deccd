//! A connection to a port inside a capsule: the agent's stream of bytes as something that can be read and written.

use crate::{app::App, error::ApiError};
use bytes::Bytes;
use futures::{StreamExt, stream};
use hearth_proto::{
    error::ErrorCode,
    id::CapsuleId,
    wire::{agent::agent_client::AgentClient, pool::HostRef, port::PortBytes},
};
use hearth_service::socket::MESSAGE_BYTES_MAX;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Streaming};

/// The agent connects within its own, shorter deadline.
const OPEN_DEADLINE: Duration = Duration::from_secs(20);
/// Between the HTTP side and the agent's side, in each direction.
const BUFFER_BYTES: usize = 256 << 10;
const PIECE_BYTES: usize = 64 << 10;
const PIECES_MAX: usize = 4;

/// One connection. Dropped, it is closed.
pub(super) struct Tunnel {
    pub(super) stream: DuplexStream,
    pub(super) pumps: Pumps,
}

/// What moves the bytes for as long as it lives.
pub(super) struct Pumps {
    _inward: AbortOnDropHandle<()>,
    _outward: AbortOnDropHandle<()>,
}

/// Connects to a port.
pub(super) async fn open(
    app: &App,
    host: &HostRef,
    capsule: CapsuleId,
    port: u16,
    request_id: &str,
) -> Result<Tunnel, ApiError> {
    let mut channel = app.agents.checkout(host).await?;
    let (pieces, queue) = mpsc::channel(PIECES_MAX);
    let first = PortBytes { capsule_id: capsule.to_string(), port: u32::from(port), ..PortBytes::default() };
    let messages = stream::once(std::future::ready(first)).chain(ReceiverStream::new(queue));
    let mut client = AgentClient::new(channel.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut request = Request::new(messages);
    if let Ok(id) = request_id.parse() {
        request.metadata_mut().insert(hearth_proto::metadata::REQUEST_ID, id);
    }
    let opened = tokio::time::timeout(OPEN_DEADLINE, client.connect_port(request)).await;
    let opened = opened.map_err(|_| ApiError::timeout("the capsule did not open the port in time"))?;
    let answers = opened
        .map_err(|status| {
            channel.judge(&status);
            refusal(status, port)
        })?
        .into_inner();
    let (ours, theirs) = duplex(BUFFER_BYTES);
    let (reader, writer) = split(theirs);
    let inward = tokio::spawn(inward(reader, pieces));
    let outward = tokio::spawn(async move {
        outward(answers, writer).await;
        // Given back when nothing flows on it any more.
        drop(channel);
    });
    let pumps = Pumps { _inward: AbortOnDropHandle::new(inward), _outward: AbortOnDropHandle::new(outward) };
    Ok(Tunnel { stream: ours, pumps })
}

fn refusal(status: tonic::Status, port: u16) -> ApiError {
    match status.code() {
        Code::NotFound => {
            ApiError::new(ErrorCode::AgentError, format!("nothing listens on port {port} of the capsule"))
        }
        _ => ApiError::from_status(status),
    }
}

async fn inward(mut reader: ReadHalf<DuplexStream>, pieces: mpsc::Sender<PortBytes>) {
    loop {
        let mut data = Vec::with_capacity(PIECE_BYTES);
        match reader.read_buf(&mut data).await {
            // The end of this direction ends the stream of messages.
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let piece = PortBytes { data, ..PortBytes::default() };
                if pieces.send(piece).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn outward(mut answers: Streaming<PortBytes>, mut writer: WriteHalf<DuplexStream>) {
    while let Ok(Some(PortBytes { data, end, .. })) = answers.message().await {
        let data = Bytes::from(data);
        if writer.write_all(&data).await.is_err() {
            return;
        }
        if end {
            break;
        }
    }
    // The other side may be gone; then nobody waits for this end.
    let _gone = writer.shutdown().await;
    // The other direction may still carry something.
    while let Ok(Some(_)) = answers.message().await {}
}
