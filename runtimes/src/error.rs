//! What a caller can be told.

/// Why a request to the runtimes failed. Errors of the executed code are events of its run, not these.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// No such language here.
    #[error("unknown language `{0}`")]
    UnknownLanguage(String),
    /// No such context.
    #[error("unknown context `{0}`")]
    UnknownContext(String),
    /// A field of the request is wrong.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field's name in the request, e.g. `files[2].path`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many runs are waiting in this context.
    #[error("too many runs are waiting in this context")]
    Busy,
    /// The kernel did not start.
    #[error("the kernel does not start: {0}")]
    Start(String),
    /// The kernel died or broke the protocol while it was warmed.
    #[error("the kernel failed: {0}")]
    Kernel(String),
    /// The context's task has ended: the runtimes are shutting down.
    #[error("the context has ended")]
    Ended,
}

impl RuntimeError {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }
}
