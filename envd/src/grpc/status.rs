//! How envd's errors read on the wire.

use crate::{
    gate::Denied,
    process::{OrderError, start::StartError},
    user::UserError,
};
use hearth_runtimes::RuntimeError;
use std::error::Error;
use tonic::Status;

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        let message = denied.to_string();
        match denied {
            Denied::Token => Self::unauthenticated(message),
            Denied::NotActivated => Self::failed_precondition(message),
            Denied::Busy => Self::aborted(message),
        }
    }
}

impl From<OrderError> for Status {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Invalid { .. }
            | OrderError::Variable(_)
            | OrderError::User(UserError::Unknown(_))
            | OrderError::Start(StartError::Cwd(_)) => Self::invalid_argument(error.to_string()),
            OrderError::Start(StartError::NotFound { .. } | StartError::NotExecutable { .. }) => {
                Self::invalid_argument(format!("cmd: {error}"))
            }
            OrderError::Taken(_) => Self::already_exists(error.to_string()),
            OrderError::TooMany | OrderError::Start(StartError::Spawn(_)) => {
                Self::resource_exhausted(with_causes(&error))
            }
            OrderError::User(UserError::Read(_))
            | OrderError::Start(_)
            | OrderError::Group(_)
            | OrderError::Make(..) => internal(error),
        }
    }
}

/// A run that was refused.
pub fn runtime(error: RuntimeError) -> Status {
    match error {
        RuntimeError::UnknownLanguage(_) | RuntimeError::Invalid { .. } => {
            Status::invalid_argument(error.to_string())
        }
        RuntimeError::UnknownContext(_) => Status::not_found(error.to_string()),
        RuntimeError::Busy => Status::resource_exhausted(error.to_string()),
        RuntimeError::Start(_) | RuntimeError::Kernel(_) | RuntimeError::Ended => internal(error),
    }
}

/// What is not the caller's fault: logged here, once, and sent whole, as the agent is the only reader.
pub fn internal(error: impl Error) -> Status {
    let message = with_causes(&error);
    tracing::error!(error = %message, "a call failed");
    Status::internal(message)
}

fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}
