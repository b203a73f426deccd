//! What can go wrong: the start as a whole, and one request.

use std::{io, path::PathBuf, time::Duration};

/// Why pool-manager cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum PoolManagerError {
    /// The settings contradict themselves or the rules.
    #[error("settings: {0}")]
    Config(#[from] crate::config::ConfigError),
    /// The agent's endpoint has no known form.
    #[error(transparent)]
    Endpoint(#[from] hearth_service::socket::EndpointError),
    /// The socket cannot be bound.
    #[error("cannot serve on {}", path.display())]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database's URL cannot be read.
    #[error("DATABASE_URL is not a Postgres URL")]
    DatabaseUrl(#[source] sqlx::Error),
    /// The database did not come up in time.
    #[error("the database did not answer within {} s", waited.as_secs())]
    DatabaseAway {
        /// How long the start waited.
        waited: Duration,
        /// The last failure.
        #[source]
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("cannot migrate the database")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// What the database knows of capsules could not be read.
    #[error("cannot read the capsules' rows")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The shutdown began before the start was done.
    #[error("stopped while starting")]
    Stopped,
    /// A part that must run as long as the service ended; nothing works right without it.
    #[error("the {0} ended unexpectedly")]
    PartEnded(&'static str),
}

/// Why a request is not served. `Display` is what the caller reads; causes are logged where they happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// A field is wrong; the text names it.
    #[error("{0}")]
    Invalid(String),
    /// No such thing, or another team's.
    #[error("{0}")]
    NotFound(String),
    /// Not in this state.
    #[error("{0}")]
    WrongState(String),
    /// A change that conflicts is under way.
    #[error("{0}; try again when that is done")]
    Conflict(String),
    /// There is one already, and it is another.
    #[error("{0}")]
    Exists(String),
    /// The caller has no right to it.
    #[error("{0}")]
    Forbidden(String),
    /// More than the team may have at the same time.
    #[error("quota: {0}")]
    Quota(String),
    /// No room now; later there may be.
    #[error("no capacity: {0}")]
    NoCapacity(String),
    /// Something this needs is away or not ready yet.
    #[error("{0}")]
    Away(String),
    /// A deadline of ours passed.
    #[error("{0}")]
    Late(String),
    /// The host tried and could not.
    #[error("{0}")]
    Host(String),
    /// A defect; details are in the log.
    #[error("internal error")]
    Internal,
}

impl Refused {
    /// Not possible in the state the capsule is in.
    pub(crate) fn not_running(state: &str) -> Self {
        Self::WrongState(format!("the capsule is {state}, not running"))
    }

    /// No such capsule, or another team's.
    pub(crate) fn no_capsule() -> Self {
        Self::NotFound("capsule not found".to_owned())
    }

    /// A part is gone, which happens only during shutdown or after a defect.
    pub(crate) fn stopping() -> Self {
        Self::Away("pool-manager is stopping".to_owned())
    }
}
