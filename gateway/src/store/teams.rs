//! Rows of `teams`.

use super::StoreError;
use hearth_proto::id::TeamId;
use sqlx::PgConnection;

/// The oldest team; made when there is none yet. Callers hold the set-up lock.
pub(crate) async fn first(connection: &mut PgConnection) -> Result<TeamId, StoreError> {
    let oldest = sqlx::query_scalar!("SELECT id FROM teams ORDER BY created_at, id LIMIT 1")
        .fetch_optional(&mut *connection)
        .await
        .map_err(StoreError::of("cannot read teams"))?;
    if let Some(id) = oldest {
        return Ok(TeamId::from_uuid(id));
    }
    let team = TeamId::new();
    sqlx::query!("INSERT INTO teams (id, name) VALUES ($1, $2)", team.uuid(), "default")
        .execute(connection)
        .await
        .map_err(StoreError::of("cannot add a team"))?;
    Ok(team)
}

/// Begins a transaction that holds the set-up lock: gateways that start at the same time take turns.
pub(crate) async fn setup(
    store: &super::Store,
) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, StoreError> {
    /// An arbitrary number that nothing else in Hearth locks.
    const SETUP_LOCK: i64 = 0x4865_6172_7468;
    let mut transaction =
        store.pool().begin().await.map_err(StoreError::of("cannot begin the set-up transaction"))?;
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", SETUP_LOCK)
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::of("cannot take the set-up lock"))?;
    Ok(transaction)
}

/// Ends the set-up transaction.
pub(crate) async fn commit(
    transaction: sqlx::Transaction<'static, sqlx::Postgres>,
) -> Result<(), StoreError> {
    transaction.commit().await.map_err(StoreError::of("cannot commit the set-up transaction"))
}
