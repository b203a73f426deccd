//! Hearth's Postgres schema, forward only, compiled in. The table of owners is in this crate's README.

#![forbid(unsafe_code)]

use sqlx::{
    PgPool,
    migrate::{MigrateError, Migrator},
};

/// Every migration, in order.
pub static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// Brings the database to the newest schema. Concurrent calls, also from other processes, wait for each other on an
/// advisory lock; a call with nothing to do is cheap.
///
/// # Errors
/// When the database cannot be reached, or has a migration that this build does not know or knows differently.
pub async fn run(pool: &PgPool) -> Result<(), MigrateError> {
    MIGRATOR.run(pool).await
}
