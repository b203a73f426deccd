//! The one error of the public border: code, status, public message. Causes are logged and never sent.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use hearth_proto::error::ErrorCode;
use hearth_service::telemetry;
use http::{HeaderValue, StatusCode, header};
use std::{error::Error, sync::Arc};

/// Longest text of another part that is passed on.
const PASSED_CHARS_MAX: usize = 500;

/// How pool-manager's refusals begin that are about a team's quota.
const QUOTA: &str = "quota:";
const QUOTA_RETRY_SEC: u32 = 10;

/// Everything a route can fail with. `Display` is the public message.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    code: ErrorCode,
    status: StatusCode,
    message: String,
    retry_after_sec: Option<u32>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ApiError {
    /// An error with the code's own status.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { code, status, message: message.into(), retry_after_sec: None, source: None }
    }

    /// The request is wrong; the message names the field.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// A defect of ours.
    pub(crate) fn internal(source: impl Error + Send + Sync + 'static) -> Self {
        Self::new(ErrorCode::InternalError, "something went wrong inside Hearth").because(source)
    }

    /// Our own deadline passed.
    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Timeout, message)
    }

    /// The part of Hearth that is needed does not answer now.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::HostUnavailable, message).retry_after(1)
    }

    /// Too much is going on.
    pub(crate) fn no_capacity(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NoCapacity, message).retry_after(1)
    }

    /// A limit of the key or its team is reached.
    pub(crate) fn rate_limited(message: impl Into<String>, retry_after_sec: u32) -> Self {
        Self::new(ErrorCode::RateLimited, message).retry_after(retry_after_sec)
    }

    /// A team's quota is the caller's to mind, and its capsules do not end within a second; the host's room is ours.
    fn exhausted(message: &str) -> Self {
        match message.strip_prefix(QUOTA) {
            Some(quota) => Self::rate_limited(passed_text(quota.trim_start()), QUOTA_RETRY_SEC),
            None => Self::no_capacity(passed_text(message)),
        }
    }

    /// How a gRPC status reads in public. Refusals (`INVALID_ARGUMENT`, `NOT_FOUND`, `FAILED_PRECONDITION`,
    /// `ALREADY_EXISTS`, `ABORTED`, `PERMISSION_DENIED`, `RESOURCE_EXHAUSTED`) carry texts that Hearth's parts write for the public; all others get a general text.
    pub(crate) fn from_status(status: tonic::Status) -> Self {
        use tonic::Code;
        let code = ErrorCode::from_grpc(status.code());
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::Aborted
            | Code::PermissionDenied => Self::new(code, passed_text(status.message())),
            Code::ResourceExhausted => Self::exhausted(status.message()),
            Code::Unavailable => Self::unavailable("the host does not answer now; try again").because(status),
            Code::DeadlineExceeded => Self::timeout("the host did not answer in time").because(status),
            // Not the caller's doing: a message over our own limit, or one of our parts that lacks a credential.
            Code::OutOfRange | Code::Unauthenticated => {
                Self::new(ErrorCode::AgentError, "the host could not do it").because(status)
            }
            Code::DataLoss | Code::Cancelled | Code::Unimplemented | Code::Unknown => {
                Self::new(code, "the host could not do it").because(status)
            }
            Code::Internal | Code::Ok => Self::internal(status),
        }
    }

    /// The same error with another status, for codes that stand for several.
    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Adds what is logged with it.
    pub(crate) fn because(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Tells the caller when to try again.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_sec = Some(seconds);
        self
    }

    /// The public code.
    #[cfg(test)]
    pub(crate) fn code(&self) -> ErrorCode {
        self.code
    }

    fn log(&self) {
        let Some(source) = &self.source else { return };
        let cause = telemetry::chain(source.as_ref());
        if self.code == ErrorCode::InternalError {
            tracing::error!(error.code = self.code.as_str(), error.cause = cause, "request failed");
        } else {
            tracing::warn!(error.code = self.code.as_str(), error.cause = cause, "request refused");
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let body = serde_json::json!({ "error": { "code": self.code.as_str(), "message": self.message } });
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after_sec {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A text from another part of Hearth, or through it from a guest: one line of limited length.
fn passed_text(text: &str) -> String {
    if text.is_empty() {
        return "the request was refused".to_owned();
    }
    text.chars().take(PASSED_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn refusals_pass_and_the_inside_stays_inside() {
        let refused = ApiError::from_status(Status::invalid_argument("cwd: no such directory"));
        assert_eq!(refused.to_string(), "cwd: no such directory");
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        for status in [
            Status::internal("/var/lib/secret: permission denied"),
            Status::unknown("/var/lib/secret"),
            Status::unavailable("connect to /var/lib/secret"),
            Status::out_of_range("/var/lib/secret"),
        ] {
            let error = ApiError::from_status(status);
            assert!(!error.to_string().contains("secret"), "{error}");
            assert!(error.status.is_server_error());
        }
    }

    #[test]
    fn passed_texts_are_one_bounded_line() {
        let error = ApiError::from_status(Status::not_found(format!("a\nb\u{1b}[31m{}", "x".repeat(9000))));
        assert!(error.to_string().starts_with("a b [31m"));
        assert_eq!(error.to_string().chars().count(), PASSED_CHARS_MAX);
    }

    #[test]
    fn capacity_errors_say_when_to_come_back() {
        let response = ApiError::from_status(Status::resource_exhausted("no room")).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
