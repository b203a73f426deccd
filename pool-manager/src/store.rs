//! Postgres. All SQL of this service is here and below. Nothing on a pool hit comes here.

pub(crate) mod capsules;
pub(crate) mod fleet;
pub(crate) mod requests;
pub(crate) mod snapshots;
pub(crate) mod usage;
pub(crate) mod writer;

use crate::{
    error::{PoolManagerError, Refused},
    retry::{self, Backoff},
};
use hearth_service::telemetry;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{future::Future, str::FromStr, time::Duration};
use tokio::time::{self, Instant};

/// Reads of users and the writer's work; both are light.
const CONNECTIONS: u32 = 8;
/// How long a query waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(2);
/// How long a query may take in all.
const QUERY: Duration = Duration::from_secs(5);
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(2) };

/// The database. Clones share its connections.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pool: PgPool,
}

/// Why a query did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database cannot be reached now. Trying again later can help.
    #[error("the database is away: {0}")]
    Away(String),
    /// The database refused, or what it has cannot be read: a defect.
    #[error("the database refused")]
    Refused(#[source] sqlx::Error),
}

impl StoreError {
    /// What a caller is told. A refusal is logged here, with its causes.
    pub(crate) fn refused(&self) -> Refused {
        match self {
            Self::Away(_) => Refused::Away("the database is away".to_owned()),
            Self::Refused(_) => {
                tracing::error!(error = telemetry::chain(self), "query failed");
                Refused::Internal
            }
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if is_away(&error) { Self::Away(telemetry::chain(&error)) } else { Self::Refused(error) }
    }
}

/// Whether it is the connection that failed, not the query. SQLSTATE classes: 08 connection, 53 resources,
/// 57 operator intervention (Postgres manual, appendix A).
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(refusal) => {
            refusal.code().is_some_and(|code| ["08", "53", "57"].iter().any(|class| code.starts_with(class)))
        }
        _ => false,
    }
}

impl Store {
    /// Connects, waiting at most `wait` for the database to be up, and brings its schema up to date.
    pub(crate) async fn connect(url: &str, wait: Duration) -> Result<Self, PoolManagerError> {
        let options = PgConnectOptions::from_str(url).map_err(PoolManagerError::DatabaseUrl)?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE)
            .connect_lazy_with(options.application_name("hearth-pool-manager"));
        up(&pool, wait).await?;
        hearth_migrations::run(&pool).await.map_err(PoolManagerError::Migrate)?;
        Ok(Self { pool })
    }

    async fn query<T>(&self, query: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        match time::timeout(QUERY, query).await {
            Ok(done) => done.map_err(StoreError::from),
            Err(_) => Err(StoreError::Away(format!("no answer within {} s", QUERY.as_secs()))),
        }
    }
}

async fn up(pool: &PgPool, wait: Duration) -> Result<(), PoolManagerError> {
    let end = Instant::now() + wait;
    for failures in 1.. {
        // The one query that is not checked when it is compiled: there is no schema yet.
        let Err(source) = sqlx::query("SELECT 1").execute(pool).await else { break };
        if Instant::now() >= end || !is_away(&source) {
            return Err(PoolManagerError::DatabaseAway { waited: wait, source });
        }
        if failures == 1 {
            let reason = telemetry::chain(&source);
            tracing::warn!(reason, wait_sec = wait.as_secs(), "waiting for the database");
        }
        let pause = BACKOFF.delay(failures, retry::unit());
        time::sleep_until((Instant::now() + pause).min(end)).await;
    }
    Ok(())
}

fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Refused(sqlx::Error::Decode(Box::new(error)))
}

/// A number for a signed column; beyond its range the largest there is.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
