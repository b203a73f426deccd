//! Rows of `api_keys`.

use super::{Store, StoreError};
use crate::auth::{Caller, scopes::KeyScopes};
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
    pub(crate) scopes: KeyScopes,
    pub(crate) expires_at: Option<OffsetDateTime>,
    /// The user it is for.
    pub(crate) user: Option<Uuid>,
    /// The key that made it.
    pub(crate) created_by: Option<KeyId>,
}

/// A key as people see it.
#[derive(Debug, Clone)]
pub(crate) struct KeyRow {
    pub(crate) id: Uuid,
    pub(crate) team_id: Uuid,
    pub(crate) name: String,
    pub(crate) prefix: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) created_by: Option<Uuid>,
    pub(crate) user_id: Option<Uuid>,
    pub(crate) expires_at: Option<OffsetDateTime>,
    pub(crate) last_used_at: Option<OffsetDateTime>,
}

impl Store {
    /// The caller of the key with this hash, unless it was revoked or its team is gone.
    pub(crate) async fn key_by_hash(&self, hash: &str) -> Result<Option<Caller>, StoreError> {
        let row = sqlx::query!(
            "SELECT keys.id, keys.team_id, keys.scopes, keys.expires_at
             FROM api_keys AS keys JOIN teams ON teams.id = keys.team_id
             WHERE keys.hash = $1 AND keys.revoked_at IS NULL AND teams.deleted_at IS NULL",
            hash
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::of("cannot look up an API key"))?;
        Ok(row.map(|row| Caller {
            key: KeyId::from_uuid(row.id),
            team: TeamId::from_uuid(row.team_id),
            scopes: KeyScopes::of(&row.scopes),
            expires_at: row.expires_at,
        }))
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

    /// Adds a key.
    pub(crate) async fn add_key(&self, key: &NewKey<'_>) -> Result<(), StoreError> {
        let mut connection =
            self.pool.acquire().await.map_err(StoreError::of("cannot connect to Postgres"))?;
        insert(&mut connection, key).await.map(drop)
    }

    /// A team's keys that were not revoked, the newest first.
    pub(crate) async fn keys(&self, team: TeamId) -> Result<Vec<KeyRow>, StoreError> {
        sqlx::query_as!(
            KeyRow,
            "SELECT id, team_id, name, prefix, scopes, created_at, created_by, user_id, expires_at, last_used_at
             FROM api_keys WHERE team_id = $1 AND revoked_at IS NULL ORDER BY created_at DESC, id DESC",
            team.uuid()
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::of("cannot read API keys"))
    }

    /// Revokes a team's key. False: there is no such key.
    pub(crate) async fn revoke_key(&self, team: TeamId, key: KeyId) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE id = $1 AND team_id = $2",
            key.uuid(),
            team.uuid()
        )
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("cannot revoke an API key"))?;
        Ok(done.rows_affected() == 1)
    }
}

/// Whether there is any key, revoked ones included.
pub(crate) async fn any(connection: &mut PgConnection) -> Result<bool, StoreError> {
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT 1 FROM api_keys) AS "any!""#)
        .fetch_one(connection)
        .await
        .map_err(StoreError::of("cannot count API keys"))
}

/// Adds a key. One that is there already, revoked or not, is left as it is.
pub(crate) async fn insert(connection: &mut PgConnection, key: &NewKey<'_>) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "INSERT INTO api_keys (id, team_id, name, prefix, hash, scopes, expires_at, user_id, created_by)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT ON CONSTRAINT api_keys_hash_unique DO NOTHING",
        key.id.uuid(),
        key.team.uuid(),
        key.name,
        key.prefix,
        key.hash,
        &key.scopes.words(),
        key.expires_at,
        key.user,
        key.created_by.map(KeyId::uuid),
    )
    .execute(connection)
    .await
    .map_err(StoreError::of("cannot add an API key"))?;
    Ok(done.rows_affected() == 1)
}
