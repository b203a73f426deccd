//! `AgentError` → gRPC status: the only mapping. Messages are written for callers; causes go to the log.

use crate::{
    disk::base::BaseImageError, error::AgentError, guest::GuestError, network::netns::NetworkError,
    snapshot::generation::GenerationError, vmm::launch::LaunchError,
};
use hearth_service::telemetry::chain;
use std::io;
use tonic::{Code, Status};

/// Whether a disk without room is at the bottom of it.
fn is_full(error: &AgentError) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        }
        source = error.source();
    }
    false
}

impl From<AgentError> for Status {
    fn from(error: AgentError) -> Self {
        let code = match &error {
            _ if is_full(&error) => Code::ResourceExhausted,
            AgentError::CapsuleNotFound
            | AgentError::TemplateNotFound(_)
            | AgentError::Generation(GenerationError::NotFound(_)) => Code::NotFound,
            AgentError::Denied(_) | AgentError::Unresponsive => Code::FailedPrecondition,
            // Asked for what this host cannot give to any capsule.
            AgentError::Launch(LaunchError::Network(NetworkError::NoEgress(_))) => Code::FailedPrecondition,
            // Damaged, or made where it cannot be restored: nothing that a repetition changes.
            AgentError::Generation(_) => Code::DataLoss,
            AgentError::Exists(_) => Code::AlreadyExists,
            AgentError::BaseImage(BaseImageError::InUse { .. }) => Code::FailedPrecondition,
            AgentError::BaseImage(BaseImageError::NotFound(_)) => Code::NotFound,
            AgentError::Invalid { .. } => Code::InvalidArgument,
            AgentError::NoCapacity(_) | AgentError::Image(_) => Code::ResourceExhausted,
            AgentError::Guest(GuestError::Refused(status)) => match status.code() {
                Code::InvalidArgument => return Status::invalid_argument(status.message()),
                Code::NotFound => return Status::not_found(status.message()),
                Code::ResourceExhausted => return Status::resource_exhausted(status.message()),
                // A call that met the moment of a capture.
                Code::FailedPrecondition => return Status::failed_precondition(status.message()),
                _ => Code::Internal,
            },
            // A VMM without a control socket has died: the caller may try another capsule.
            AgentError::Vmm(error) if error.is_closed() => Code::Unavailable,
            AgentError::Ended(_) | AgentError::Stopping | AgentError::Guest(GuestError::Unreachable(_)) => {
                Code::Unavailable
            }
            AgentError::Guest(GuestError::Deadline(_)) => Code::DeadlineExceeded,
            AgentError::Launch(_)
            | AgentError::Vmm(_)
            | AgentError::Guest(
                GuestError::Randomness(_) | GuestError::Rehearsal(_) | GuestError::Token(_),
            )
            | AgentError::Capture(_)
            | AgentError::Paused(_)
            | AgentError::BaseImage(_)
            | AgentError::File { .. }
            | AgentError::Store(_)
            | AgentError::Template(_) => Code::Internal,
        };
        if code == Code::Internal {
            tracing::error!(error = %chain(&error), "call failed");
        }
        Status::new(code, error.to_string())
    }
}
