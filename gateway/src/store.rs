//! Postgres: all SQL of the gateway is below. It reads and writes its own tables only (`migrations/README.md`).

pub(crate) mod api_keys;
pub(crate) mod audit;
pub(crate) mod teams;

use crate::config::Config;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{str::FromStr, time::Duration};

/// How long a request waits for a connection before it fails.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Postgres ends a statement of ours that takes longer.
const STATEMENT_TIMEOUT_MS: &str = "10000";
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// The database did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct StoreError {
    doing: &'static str,
    #[source]
    source: sqlx::Error,
}

impl StoreError {
    fn of(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self { doing, source }
    }
}

/// The gateway's database.
#[derive(Clone)]
pub(crate) struct Store {
    pool: PgPool,
}

impl Store {
    /// Opens a bounded pool; waits a few seconds for a server that is just starting.
    pub(crate) async fn open(config: &Config) -> Result<Self, StoreError> {
        let url = config.database_url.as_ref().map(|url| url.expose()).unwrap_or_default();
        let options = PgConnectOptions::from_str(url)
            .map_err(StoreError::of("DATABASE_URL cannot be understood"))?
            .application_name("hearth-gateway")
            .options([("statement_timeout", STATEMENT_TIMEOUT_MS)]);
        let pool = PgPoolOptions::new()
            .max_connections(config.database_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options)
            .await
            .map_err(StoreError::of("cannot connect to Postgres"))?;
        Ok(Self { pool })
    }

    /// The pool itself, for migrations.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Whether the database answers.
    pub(crate) async fn answers(&self) -> bool {
        let ping = sqlx::query("SELECT 1").execute(&self.pool);
        matches!(tokio::time::timeout(PING_TIMEOUT, ping).await, Ok(Ok(_)))
    }
}
