//! The closed list of public error codes, and how a gRPC status becomes one.

use tonic::Code;

/// Public error codes (`error.code` in an answer of the HTTP API).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request is wrong; the message names the field.
    InvalidRequest,
    /// No key, or an unknown one.
    Unauthorized,
    /// The key may not do this.
    Forbidden,
    /// No such thing, or not the caller's.
    NotFound,
    /// The capsule is in a state in which this is not possible.
    InvalidState,
    /// It exists already, or a conflicting request is under way.
    Conflict,
    /// Body or file over the limit.
    TooLarge,
    /// A limit of the key is reached.
    RateLimited,
    /// No host has room now; try again.
    NoCapacity,
    /// The capsule's host does not answer.
    HostUnavailable,
    /// The host could not do it.
    AgentError,
    /// Our own deadline passed.
    Timeout,
    /// A defect of ours.
    InternalError,
}

impl ErrorCode {
    /// The code's public spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::InvalidState => "invalid_state",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::NoCapacity => "no_capacity",
            Self::HostUnavailable => "host_unavailable",
            Self::AgentError => "agent_error",
            Self::Timeout => "timeout",
            Self::InternalError => "internal_error",
        }
    }

    /// The HTTP status that goes with the code.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::InvalidState | Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::RateLimited => 429,
            Self::NoCapacity | Self::HostUnavailable => 503,
            Self::AgentError => 502,
            Self::Timeout => 504,
            Self::InternalError => 500,
        }
    }

    /// How a gRPC status of one of our services reads in public.
    pub fn from_grpc(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::InvalidRequest,
            Code::NotFound => Self::NotFound,
            Code::FailedPrecondition => Self::InvalidState,
            Code::AlreadyExists | Code::Aborted => Self::Conflict,
            Code::ResourceExhausted => Self::NoCapacity,
            Code::Unavailable => Self::HostUnavailable,
            Code::DeadlineExceeded => Self::Timeout,
            Code::PermissionDenied => Self::Forbidden,
            Code::Unauthenticated => Self::Unauthorized,
            Code::DataLoss | Code::Cancelled | Code::Unimplemented | Code::Unknown => Self::AgentError,
            Code::Internal | Code::Ok => Self::InternalError,
        }
    }
}
