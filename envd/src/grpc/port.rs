//! `ConnectPort` on the wire: two directions, each ends on its own.

use crate::port::{self, PortError};
use futures::{
    Stream,
    stream::{self, BoxStream},
};
use hearth_proto::wire::port::PortBytes;
use std::{io, net::IpAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};

/// Bytes of one answer.
const CHUNK_BYTES: usize = 64 << 10;
/// How long the first message may take.
const FIRST_DEADLINE: Duration = Duration::from_secs(10);

impl From<PortError> for Status {
    fn from(error: PortError) -> Self {
        match error {
            PortError::Bad(_) => Self::invalid_argument(error.to_string()),
            PortError::Nobody(_) | PortError::Busy(_) => Self::not_found(error.to_string()),
            PortError::Failed(..) => Self::internal(error.to_string()),
        }
    }
}

/// Connects to the port that the first message names and passes bytes on, as fast as the slower side reads.
pub async fn connect(
    mut bytes: Streaming<PortBytes>,
    own: Option<IpAddr>,
) -> Result<BoxStream<'static, Result<PortBytes, Status>>, Status> {
    let first = match timeout(FIRST_DEADLINE, bytes.message()).await {
        Ok(first) => first?.ok_or_else(|| Status::invalid_argument("the stream is empty"))?,
        Err(_) => return Err(Status::deadline_exceeded("no first message")),
    };
    let stream = port::connect(port::check(first.port)?, own).await?;
    let (from_service, to_service) = stream.into_split();
    // Ends with the answers: dropping them closes the connection.
    let inward = AbortOnDropHandle::new(tokio::spawn(inward(first, bytes, to_service)));
    Ok(Box::pin(outward(from_service, inward)))
}

/// The caller's bytes, to the service.
async fn inward(
    first: PortBytes,
    mut bytes: Streaming<PortBytes>,
    mut service: OwnedWriteHalf,
) -> Result<(), Status> {
    let mut message = Some(first);
    while let Some(PortBytes { data, end, .. }) = message {
        // A service that reads no more still answers.
        if service.write_all(&data).await.is_err() {
            return Ok(());
        }
        if end {
            break;
        }
        message = bytes.message().await?;
    }
    // It may have closed the connection already.
    let _ = service.shutdown().await;
    Ok(())
}

enum Turn {
    Reads(OwnedReadHalf, AbortOnDropHandle<Result<(), Status>>),
    Waits(AbortOnDropHandle<Result<(), Status>>),
    Done,
}

/// The service's bytes, its end, and then the end of the other direction.
fn outward(
    service: OwnedReadHalf,
    inward: AbortOnDropHandle<Result<(), Status>>,
) -> impl Stream<Item = Result<PortBytes, Status>> + Send {
    stream::unfold(Turn::Reads(service, inward), |turn| async move {
        match turn {
            Turn::Reads(mut service, inward) => {
                let mut data = Vec::with_capacity(CHUNK_BYTES);
                match service.read_buf(&mut data).await {
                    Ok(0) => {
                        let end = PortBytes { end: true, ..PortBytes::default() };
                        Some((Ok(end), Turn::Waits(inward)))
                    }
                    Ok(_) => {
                        let bytes = PortBytes { data, ..PortBytes::default() };
                        Some((Ok(bytes), Turn::Reads(service, inward)))
                    }
                    Err(error) => Some((Err(broken(&error)), Turn::Done)),
                }
            }
            Turn::Waits(inward) => match inward.await {
                Ok(Err(status)) => Some((Err(status), Turn::Done)),
                Ok(Ok(())) | Err(_) => None,
            },
            Turn::Done => None,
        }
    })
}

fn broken(error: &io::Error) -> Status {
    Status::unavailable(format!("the service broke the connection: {error}"))
}
