//! Rows of users' capsules.

use super::{Store, StoreError};
use crate::capsule::{Change, Labels, Record, Times, state::State};
use hearth_proto::id::{CapsuleId, TeamId};
use sqlx::types::Json;
use std::collections::BTreeMap;
use time::OffsetDateTime;
use uuid::Uuid;

/// Most capsules in one list. A team's quota is far below.
const LIST_MAX: i64 = 10_000;

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    team_id: Uuid,
    template: String,
    host_id: Option<String>,
    state: String,
    reason: String,
    vcpus: i32,
    memory_mb: i64,
    timeout_sec: i64,
    name: String,
    metadata: Json<BTreeMap<String, String>>,
    created_at: OffsetDateTime,
    started_at: Option<OffsetDateTime>,
    last_active_at: Option<OffsetDateTime>,
    updated_at: OffsetDateTime,
}

impl TryFrom<Row> for Record {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: CapsuleId::from_uuid(row.id),
            team: TeamId::from_uuid(row.team_id),
            template: row.template,
            host_id: row.host_id.unwrap_or_default(),
            state: parse(&row.state)?,
            reason: row.reason,
            vcpus: u32::try_from(row.vcpus).map_err(unreadable)?,
            memory_mb: u64::try_from(row.memory_mb).map_err(unreadable)?,
            timeout_sec: u64::try_from(row.timeout_sec).map_err(unreadable)?,
            labels: Labels { name: row.name, metadata: row.metadata.0 },
            times: Times {
                created: row.created_at,
                started: row.started_at,
                last_active: row.last_active_at,
                updated: row.updated_at,
            },
        })
    }
}

fn parse(state: &str) -> Result<State, StoreError> {
    State::parse(state).map_err(unreadable)
}

fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Refused(sqlx::Error::Decode(Box::new(error)))
}

/// A number for a signed column; beyond its range the largest there is.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Store {
    /// A new row.
    pub(crate) async fn insert(&self, record: &Record) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT INTO capsules (id, team_id, template, host_id, state, reason, vcpus, memory_mb, timeout_sec, name,
                                   metadata, created_at, started_at, last_active_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(record.id.uuid())
        .bind(record.team.uuid())
        .bind(&record.template)
        .bind(&record.host_id)
        .bind(record.state.as_str())
        .bind(&record.reason)
        .bind(i32::try_from(record.vcpus).unwrap_or(i32::MAX))
        .bind(signed(record.memory_mb))
        .bind(signed(record.timeout_sec))
        .bind(&record.labels.name)
        .bind(Json(&record.labels.metadata))
        .bind(record.times.created)
        .bind(record.times.started)
        .bind(record.times.last_active)
        .bind(record.times.updated);
        self.query(insert.execute(&self.pool)).await?;
        Ok(())
    }

    /// A team's capsule, in whatever state.
    pub(crate) async fn get(&self, team: TeamId, id: CapsuleId) -> Result<Option<Record>, StoreError> {
        let select = sqlx::query_as::<_, Row>("SELECT * FROM capsules WHERE id = $1 AND team_id = $2")
            .bind(id.uuid())
            .bind(team.uuid());
        self.query(select.fetch_optional(&self.pool)).await?.map(Record::try_from).transpose()
    }

    /// A team's capsules that have not ended, the newest first.
    pub(crate) async fn list(&self, team: TeamId) -> Result<Vec<Record>, StoreError> {
        let select = sqlx::query_as::<_, Row>(
            "SELECT * FROM capsules WHERE team_id = $1 AND state NOT IN ('stopped', 'failed')
             ORDER BY created_at DESC, id DESC LIMIT $2",
        )
        .bind(team.uuid())
        .bind(LIST_MAX);
        self.query(select.fetch_all(&self.pool)).await?.into_iter().map(Record::try_from).collect()
    }

    /// Every capsule that has not ended, of all teams.
    pub(crate) async fn active(&self) -> Result<Vec<Record>, StoreError> {
        let select =
            sqlx::query_as::<_, Row>("SELECT * FROM capsules WHERE state NOT IN ('stopped', 'failed')");
        self.query(select.fetch_all(&self.pool)).await?.into_iter().map(Record::try_from).collect()
    }

    /// The state in a capsule's row, whoever's it is.
    pub(crate) async fn state_of(&self, id: CapsuleId) -> Result<Option<State>, StoreError> {
        let select =
            sqlx::query_scalar::<_, String>("SELECT state FROM capsules WHERE id = $1").bind(id.uuid());
        let state = self.query(select.fetch_optional(&self.pool)).await?;
        state.as_deref().map(parse).transpose()
    }

    /// Writes a change of state. An older change never overwrites a newer one.
    pub(crate) async fn change(&self, change: &Change) -> Result<(), StoreError> {
        let update = sqlx::query(
            "UPDATE capsules SET state = $2, reason = $3, updated_at = $4 WHERE id = $1 AND updated_at <= $4",
        )
        .bind(change.id.uuid())
        .bind(change.state.as_str())
        .bind(&change.reason)
        .bind(change.at);
        self.query(update.execute(&self.pool)).await?;
        Ok(())
    }

    /// Writes when a capsule was used last.
    pub(crate) async fn active_at(&self, id: CapsuleId, at: OffsetDateTime) -> Result<(), StoreError> {
        let update =
            sqlx::query("UPDATE capsules SET last_active_at = $2 WHERE id = $1").bind(id.uuid()).bind(at);
        self.query(update.execute(&self.pool)).await?;
        Ok(())
    }
}
