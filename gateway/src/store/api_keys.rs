//! Rows of `api_keys`.

use super::{Store, StoreError};
use hearth_proto::id::{KeyId, TeamId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// A new key: what is stored of it.
pub(crate) struct NewKey<'a> {
    pub(crate) id: KeyId,
    pub(crate) team: TeamId,
    pub(crate) name: &'a str,
    pub(crate) prefix: &'a str,
    pub(crate) hash: &'a str,
}

impl Store {
    /// The key with this hash and its team, unless it was revoked.
    pub(crate) async fn key_by_hash(&self, hash: &str) -> Result<Option<(KeyId, TeamId)>, StoreError> {
        let row =
            sqlx::query!("SELECT id, team_id FROM api_keys WHERE hash = $1 AND revoked_at IS NULL", hash)
                .fetch_optional(&self.pool)
                .await
                .map_err(StoreError::of("cannot look up an API key"))?;
        Ok(row.map(|row| (KeyId::from_uuid(row.id), TeamId::from_uuid(row.team_id))))
    }

    /// Notes when keys were last used. Never moves an instant back.
    pub(crate) async fn touch_keys(&self, used: &[(KeyId, OffsetDateTime)]) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = used.iter().map(|(id, _)| id.uuid()).collect();
        let instants: Vec<OffsetDateTime> = used.iter().map(|(_, instant)| *instant).collect();
        sqlx::query!(
            "UPDATE api_keys SET last_used_at = GREATEST(last_used_at, used.instant)
             FROM UNNEST($1::uuid[], $2::timestamptz[]) AS used (id, instant)
             WHERE api_keys.id = used.id",
            &ids,
            &instants,
        )
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("cannot note the last use of API keys"))?;
        Ok(())
    }
}

/// Whether there is any key, revoked ones included.
pub(crate) async fn any(connection: &mut PgConnection) -> Result<bool, StoreError> {
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT 1 FROM api_keys) AS "exists!""#)
        .fetch_one(connection)
        .await
        .map_err(StoreError::of("cannot count API keys"))
}

/// Adds a key. One that is there already, revoked or not, is left as it is.
pub(crate) async fn insert(connection: &mut PgConnection, key: &NewKey<'_>) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "INSERT INTO api_keys (id, team_id, name, prefix, hash) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT ON CONSTRAINT api_keys_hash_unique DO NOTHING",
        key.id.uuid(),
        key.team.uuid(),
        key.name,
        key.prefix,
        key.hash,
    )
    .execute(connection)
    .await
    .map_err(StoreError::of("cannot add an API key"))?;
    Ok(done.rows_affected() == 1)
}
