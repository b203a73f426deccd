//! `AgentError` → gRPC status: the only mapping. Messages are written for callers; causes go to the log.

use crate::{error::AgentError, guest::GuestError};
use hearth_service::telemetry::chain;
use tonic::{Code, Status};

impl From<AgentError> for Status {
    fn from(error: AgentError) -> Self {
        let code = match &error {
            AgentError::CapsuleNotFound | AgentError::TemplateNotFound(_) => Code::NotFound,
            AgentError::Denied(_) => Code::FailedPrecondition,
            AgentError::Invalid { .. } => Code::InvalidArgument,
            AgentError::NoCapacity(_) | AgentError::Image(_) => Code::ResourceExhausted,
            AgentError::Guest(GuestError::Refused(status)) => match status.code() {
                Code::InvalidArgument => return Status::invalid_argument(status.message()),
                Code::NotFound => return Status::not_found(status.message()),
                Code::ResourceExhausted => return Status::resource_exhausted(status.message()),
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
            | AgentError::Guest(GuestError::Randomness(_))
            | AgentError::Store(_)
            | AgentError::Template(_) => Code::Internal,
        };
        if code == Code::Internal {
            tracing::error!(error = %chain(&error), "call failed");
        }
        Status::new(code, error.to_string())
    }
}
