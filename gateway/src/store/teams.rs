//! Rows of `teams`, `users` and `team_members`.

use super::{Store, StoreError};
use hearth_proto::id::{TeamId, UserId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// A team.
#[derive(Debug, Clone)]
pub(crate) struct TeamRow {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) keys: i64,
    pub(crate) members: i64,
}

/// A user.
#[derive(Debug, Clone)]
pub(crate) struct UserRow {
    pub(crate) id: Uuid,
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) created_at: OffsetDateTime,
}

/// A user in a team.
#[derive(Debug, Clone)]
pub(crate) struct MemberRow {
    pub(crate) user_id: Uuid,
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) role: String,
}

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
    insert(connection, team, "default").await?;
    Ok(team)
}

async fn insert(connection: &mut PgConnection, team: TeamId, name: &str) -> Result<(), StoreError> {
    sqlx::query!("INSERT INTO teams (id, name) VALUES ($1, $2)", team.uuid(), name)
        .execute(connection)
        .await
        .map_err(StoreError::of("cannot add a team"))?;
    Ok(())
}

/// Begins a transaction that holds the set-up lock: gateways that start at the same time take turns.
pub(crate) async fn setup(store: &Store) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, StoreError> {
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

impl Store {
    /// Adds a team.
    pub(crate) async fn add_team(&self, team: TeamId, name: &str) -> Result<(), StoreError> {
        let mut connection =
            self.pool.acquire().await.map_err(StoreError::of("cannot connect to Postgres"))?;
        insert(&mut connection, team, name).await
    }

    /// All teams, the oldest first.
    pub(crate) async fn teams(&self) -> Result<Vec<TeamRow>, StoreError> {
        sqlx::query_as!(
            TeamRow,
            r#"SELECT id, name, created_at,
                      (SELECT count(*) FROM api_keys WHERE team_id = teams.id AND revoked_at IS NULL) AS "keys!",
                      (SELECT count(*) FROM team_members WHERE team_id = teams.id) AS "members!"
               FROM teams WHERE deleted_at IS NULL ORDER BY created_at, id"#
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::of("cannot read teams"))
    }

    /// Whether there is such a team.
    pub(crate) async fn has_team(&self, team: TeamId) -> Result<bool, StoreError> {
        sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT 1 FROM teams WHERE id = $1 AND deleted_at IS NULL) AS "there!""#,
            team.uuid()
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::of("cannot read teams"))
    }

    /// Ends a team and revokes its keys. False: there is none.
    pub(crate) async fn delete_team(&self, team: TeamId) -> Result<bool, StoreError> {
        let gone = sqlx::query!(
            "WITH team AS (
                 UPDATE teams SET deleted_at = now() WHERE id = $1 AND deleted_at IS NULL RETURNING id
             ), keys AS (
                 UPDATE api_keys SET revoked_at = COALESCE(revoked_at, now())
                 WHERE team_id IN (SELECT id FROM team)
             )
             SELECT id FROM team",
            team.uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::of("cannot end a team"))?;
        Ok(gone.is_some())
    }

    /// Adds a user. False: the address is taken.
    pub(crate) async fn add_user(&self, user: UserId, email: &str, name: &str) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "INSERT INTO users (id, email, name) VALUES ($1, $2, $3) ON CONFLICT (lower(email)) DO NOTHING",
            user.uuid(),
            email,
            name
        )
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("cannot add a user"))?;
        Ok(done.rows_affected() == 1)
    }

    /// All users, the oldest first.
    pub(crate) async fn users(&self) -> Result<Vec<UserRow>, StoreError> {
        sqlx::query_as!(UserRow, "SELECT id, email, name, created_at FROM users ORDER BY created_at, id")
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::of("cannot read users"))
    }

    /// Removes a user from all teams and revokes the keys that were made for them. False: there is none.
    pub(crate) async fn delete_user(&self, user: UserId) -> Result<bool, StoreError> {
        let gone = sqlx::query!(
            "WITH keys AS (
                 UPDATE api_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE user_id = $1
             )
             DELETE FROM users WHERE id = $1 RETURNING id",
            user.uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::of("cannot remove a user"))?;
        Ok(gone.is_some())
    }

    /// Puts a user into a team, or gives another role there. False: there is no such team or user.
    pub(crate) async fn set_member(
        &self,
        team: TeamId,
        user: UserId,
        role: &str,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "INSERT INTO team_members (team_id, user_id, role)
             SELECT teams.id, users.id, $3 FROM teams, users
             WHERE teams.id = $1 AND teams.deleted_at IS NULL AND users.id = $2
             ON CONFLICT (team_id, user_id) DO UPDATE SET role = excluded.role",
            team.uuid(),
            user.uuid(),
            role
        )
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("cannot add a member to a team"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Takes a user out of a team. False: not in it.
    pub(crate) async fn remove_member(&self, team: TeamId, user: UserId) -> Result<bool, StoreError> {
        let done = sqlx::query!(
            "DELETE FROM team_members WHERE team_id = $1 AND user_id = $2",
            team.uuid(),
            user.uuid()
        )
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("cannot remove a member of a team"))?;
        Ok(done.rows_affected() == 1)
    }

    /// A team's members.
    pub(crate) async fn members(&self, team: TeamId) -> Result<Vec<MemberRow>, StoreError> {
        sqlx::query_as!(
            MemberRow,
            "SELECT users.id AS user_id, users.email, users.name, team_members.role
             FROM team_members JOIN users ON users.id = team_members.user_id
             WHERE team_members.team_id = $1 ORDER BY users.email",
            team.uuid()
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::of("cannot read a team's members"))
    }
}
