//! The parts that the gateway calls, over gRPC: pool-manager, and the agents of hosts that pool-manager names.
//! Every call has a deadline and carries the request's id.

pub(crate) mod agents;
pub(crate) mod guest;
pub(crate) mod pool;
pub(crate) mod stream;

use crate::error::ApiError;
use hearth_proto::metadata::REQUEST_ID;
use hearth_service::socket::EndpointError;
use std::{future::Future, time::Duration};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

/// Pauses between the tries of a read while its part restarts.
const READ_PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(250)];

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// The part refused, failed, or is not there.
    #[error("the call failed")]
    Status(#[source] Box<Status>),
    /// The deadline passed without an answer.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// Every channel to the host is in use.
    #[error("no free channel to the host")]
    Busy,
    /// pool-manager named a host that cannot be reached.
    #[error("the host's endpoint cannot be used")]
    Endpoint(#[source] EndpointError),
    /// An answer that the contract does not allow.
    #[error("the answer lacks {0}")]
    Incomplete(&'static str),
}

impl UpstreamError {
    /// The gRPC code, when another part answered.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Status(status) => Some(status.code()),
            Self::Deadline(_) | Self::Busy | Self::Endpoint(_) | Self::Incomplete(_) => None,
        }
    }
}

impl From<Status> for UpstreamError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl From<UpstreamError> for ApiError {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Status(status) => Self::from_status(*status),
            UpstreamError::Deadline(_) => Self::timeout("the host did not answer in time").because(error),
            UpstreamError::Busy => {
                Self::no_capacity("the host is busy with other requests; try again").because(error)
            }
            UpstreamError::Endpoint(_) | UpstreamError::Incomplete(_) => Self::internal(error),
        }
    }
}

/// A request with its metadata: the request's id, and how long the other side has.
fn request<T>(message: T, request_id: &str, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    if let Ok(id) = request_id.parse() {
        request.metadata_mut().insert(REQUEST_ID, id);
    }
    request
}

/// Waits for an answer, at most `deadline`.
async fn answer<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
    deadline: Duration,
) -> Result<T, UpstreamError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(UpstreamError::Deadline(deadline)),
    }
}

/// Repeats a read while the other side is unavailable: a few times, within `deadline` as a whole.
async fn read<T, C, F>(deadline: Duration, call: C) -> Result<T, UpstreamError>
where
    C: Fn(Duration) -> F,
    F: Future<Output = Result<T, UpstreamError>>,
{
    let end = Instant::now() + deadline;
    for pause in READ_PAUSES {
        match call(end.saturating_duration_since(Instant::now())).await {
            Err(error) if error.code() == Some(Code::Unavailable) => tokio::time::sleep(pause).await,
            settled => return settled,
        }
    }
    call(end.saturating_duration_since(Instant::now())).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    async fn tries_of(status: fn() -> Status) -> u32 {
        let tries = AtomicU32::new(0);
        let result: Result<(), _> = read(Duration::from_secs(5), |_| async {
            tries.fetch_add(1, Ordering::Relaxed);
            Err(status().into())
        })
        .await;
        assert!(result.is_err());
        tries.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn only_an_absent_part_is_asked_again_and_not_for_ever() {
        assert_eq!(tries_of(|| Status::unavailable("restarting")).await, 3);
        assert_eq!(tries_of(|| Status::not_found("no such capsule")).await, 1);
        assert_eq!(tries_of(|| Status::internal("broken")).await, 1);
    }
}
