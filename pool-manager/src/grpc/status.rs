//! The only mapping from refusals to gRPC statuses.

use crate::error::Refused;
use tonic::{Code, Status};

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let code = match refused {
            Refused::Invalid(_) => Code::InvalidArgument,
            Refused::NotFound(_) => Code::NotFound,
            Refused::WrongState(_) => Code::FailedPrecondition,
            Refused::Conflict(_) => Code::Aborted,
            Refused::Exists(_) => Code::AlreadyExists,
            Refused::Forbidden(_) => Code::PermissionDenied,
            Refused::Quota(_) | Refused::NoCapacity(_) => Code::ResourceExhausted,
            Refused::Away(_) => Code::Unavailable,
            Refused::Late(_) => Code::DeadlineExceeded,
            // What the gateway reads as `agent_error`.
            Refused::Host(_) => Code::Unknown,
            Refused::Internal => Code::Internal,
        };
        Self::new(code, refused.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_proto::error::ErrorCode;

    #[test]
    fn each_refusal_has_its_public_code() {
        let text = || "x".to_owned();
        for (refused, code) in [
            (Refused::Invalid(text()), ErrorCode::InvalidRequest),
            (Refused::NotFound(text()), ErrorCode::NotFound),
            (Refused::WrongState(text()), ErrorCode::InvalidState),
            (Refused::Conflict(text()), ErrorCode::Conflict),
            (Refused::Exists(text()), ErrorCode::Conflict),
            (Refused::Forbidden(text()), ErrorCode::Forbidden),
            (Refused::NoCapacity(text()), ErrorCode::NoCapacity),
            (Refused::Away(text()), ErrorCode::HostUnavailable),
            (Refused::Late(text()), ErrorCode::Timeout),
            (Refused::Host(text()), ErrorCode::AgentError),
            (Refused::Internal, ErrorCode::InternalError),
        ] {
            assert_eq!(ErrorCode::from_grpc(Status::from(refused).code()), code);
        }
    }

    #[test]
    fn no_capacity_says_so() {
        let status = Status::from(Refused::NoCapacity("the host's memory is full".to_owned()));
        assert_eq!(status.message(), "no capacity: the host's memory is full");
    }
}
