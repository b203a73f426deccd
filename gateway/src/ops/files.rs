//! Files of a capsule: bytes in both directions as they come, and what is known about them.

use crate::{
    app::App,
    error::ApiError,
    ops::guest::Place,
    upstream::{UpstreamError, stream::Events},
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use hearth_proto::{
    error::ErrorCode,
    wire::files::{
        Entry, ListRequest, ReadReply, ReadRequest, WriteRequest, WriteStart, read_reply, write_request,
    },
};
use http::StatusCode;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

/// Entries of one list; a guest can make more.
const ENTRIES_MAX: usize = 100_000;
const LIST_DEADLINE: Duration = Duration::from_secs(120);
/// Pieces of an upload on their way; each is at most [`PIECE_BYTES_MAX`].
const PIECES_MAX: usize = 4;
const PIECE_BYTES_MAX: usize = 1 << 20;
/// A guest that sends nothing for so long is given up.
const READ_DEADLINE: Duration = Duration::from_secs(60);

/// A path of the guest as it can stand in JSON.
pub(crate) fn shown_path(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// A guest's refusal about a file, in public words.
pub(crate) fn refusal(error: UpstreamError) -> ApiError {
    let UpstreamError::Status(status) = &error else { return error.into() };
    match status.code() {
        // A directory where a file is needed, or the other way round: the request is wrong, not the capsule.
        Code::FailedPrecondition => ApiError::from_status(tonic::Status::invalid_argument(status.message())),
        Code::ResourceExhausted => {
            ApiError::new(ErrorCode::TooLarge, "there is no space left on the capsule's disk")
                .with_status(StatusCode::INSUFFICIENT_STORAGE)
        }
        Code::Aborted => ApiError::new(ErrorCode::AgentError, "the file changed while it was read"),
        _ => error.into(),
    }
}

/// A file that is being read: how many bytes will come, and the bytes.
pub(crate) struct Download {
    pub(crate) length: u64,
    events: Events<ReadReply>,
}

/// Opens a file for reading.
pub(crate) async fn download(app: &App, place: &Place, request: ReadRequest) -> Result<Download, ApiError> {
    let (offset, wanted) = (request.offset, request.length);
    let mut events = place.guest(app).read(request).await.map_err(refusal)?;
    let first = tokio::time::timeout(READ_DEADLINE, events.next()).await;
    let first = first.map_err(|_| ApiError::timeout("the capsule did not answer in time"))?;
    match first.map_err(refusal)?.and_then(|reply| reply.part) {
        Some(read_reply::Part::Entry(entry)) => {
            let rest = entry.size.saturating_sub(offset);
            let length = if wanted == 0 { rest } else { rest.min(wanted) };
            Ok(Download { length, events })
        }
        Some(read_reply::Part::Data(_)) | None => {
            Err(ApiError::new(ErrorCode::AgentError, "the capsule did not say what it reads"))
        }
    }
}

/// A download broke off; the client sees that by the length that was announced.
#[derive(Debug, thiserror::Error)]
#[error("the download broke off")]
pub(crate) struct BrokeOff;

impl Download {
    /// The bytes, exactly as many as announced. Ends with an error when the guest sends fewer, more, or stalls.
    pub(crate) fn bytes(self) -> impl Stream<Item = Result<Bytes, BrokeOff>> + Send {
        futures::stream::try_unfold((self.events, self.length), |(mut events, left)| async move {
            loop {
                let next = tokio::time::timeout(READ_DEADLINE, events.next()).await.map_err(|_| BrokeOff)?;
                match next.map_err(|error| log(&error))?.and_then(|reply| reply.part) {
                    Some(read_reply::Part::Data(data)) if data.is_empty() => {}
                    Some(read_reply::Part::Data(data)) => {
                        let left = left.checked_sub(data.len() as u64).ok_or(BrokeOff)?;
                        return Ok(Some((Bytes::from(data), (events, left))));
                    }
                    None if left == 0 => return Ok(None),
                    Some(read_reply::Part::Entry(_)) | None => return Err(BrokeOff),
                }
            }
        })
    }
}

fn log(error: &UpstreamError) -> BrokeOff {
    tracing::warn!(error.cause = hearth_service::telemetry::chain(error), "a download broke off");
    BrokeOff
}

/// A file that is being written. Dropped before [`Upload::finish`], nothing of it is kept.
pub(crate) struct Upload {
    call: AbortOnDropHandle<Result<Entry, UpstreamError>>,
    pieces: mpsc::Sender<Piece>,
}

/// What is sent of a file. Its end is said: a sender that is only dropped must not look like one that is done.
enum Piece {
    Message(WriteRequest),
    End,
}

impl Upload {
    /// Begins a file.
    pub(crate) fn begin(app: &App, place: Place, start: WriteStart) -> Self {
        let (pieces, queue) = mpsc::channel(PIECES_MAX);
        let first = WriteRequest { part: Some(write_request::Part::Start(start)) };
        let messages = futures::stream::once(std::future::ready(first)).chain(until_end(queue));
        let app = app.clone();
        let call = async move { place.guest(&app).upload(messages).await };
        Self { call: AbortOnDropHandle::new(tokio::spawn(call)), pieces }
    }

    /// Passes bytes on as fast as the guest takes them. False: the guest refused, and [`Upload::finish`] says why.
    ///
    /// # Cancel safety
    /// Not cancel safe: some of the bytes may be passed on already.
    pub(crate) async fn push(&mut self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
            let message = WriteRequest { part: Some(write_request::Part::Data(piece.to_vec())) };
            if self.pieces.send(Piece::Message(message)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// The file is whole.
    pub(crate) async fn finish(self) -> Result<Entry, ApiError> {
        let Self { call, pieces } = self;
        // A guest that refused takes no end, and its answer is there already.
        let _refused = pieces.send(Piece::End).await;
        match call.await {
            Ok(written) => written.map_err(refusal),
            Err(error) => Err(ApiError::internal(error)),
        }
    }
}

/// The messages up to the end that is said. Without it the stream stays open until its call is given up: HTTP/2 tells a
/// stream that ended from one that was given up, and a guest takes the first for a whole file.
fn until_end(queue: mpsc::Receiver<Piece>) -> impl Stream<Item = WriteRequest> + Send {
    futures::stream::unfold(queue, |mut queue| async move {
        match queue.recv().await {
            Some(Piece::Message(message)) => Some((message, queue)),
            Some(Piece::End) => None,
            None => std::future::pending().await,
        }
    })
}

/// Entries below a directory.
pub(crate) async fn list(app: &App, place: &Place, request: ListRequest) -> Result<Vec<Entry>, ApiError> {
    let mut events = place.guest(app).list(request).await.map_err(list_refusal)?;
    let collect = async {
        let mut entries = Vec::new();
        while let Some(reply) = events.next().await.map_err(list_refusal)? {
            entries.extend(reply.entries);
            if entries.len() > ENTRIES_MAX {
                return Err(too_many());
            }
        }
        Ok(entries)
    };
    let late = || ApiError::timeout("the capsule did not list the directory in time");
    tokio::time::timeout(LIST_DEADLINE, collect).await.map_err(|_| late())?
}

fn list_refusal(error: UpstreamError) -> ApiError {
    match error.code() {
        Some(Code::ResourceExhausted) => too_many(),
        _ => refusal(error),
    }
}

fn too_many() -> ApiError {
    ApiError::new(ErrorCode::TooLarge, "path: too many entries below it; list its directories one by one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn only_an_end_that_is_said_ends_a_file() {
        let (pieces, queue) = mpsc::channel(2);
        let mut messages = std::pin::pin!(until_end(queue));
        assert!(pieces.send(Piece::Message(WriteRequest::default())).await.is_ok());
        assert!(messages.next().await.is_some());
        drop(pieces);
        assert!(messages.next().now_or_never().is_none(), "a sender that was dropped looks done");

        let (pieces, queue) = mpsc::channel(2);
        let mut messages = std::pin::pin!(until_end(queue));
        assert!(pieces.send(Piece::End).await.is_ok());
        assert!(messages.next().await.is_none());
    }
}
