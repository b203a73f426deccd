//! Rows of users' capsules.

use super::{Store, StoreError, requests, signed, unreadable};
use crate::capsule::{
    Disk, Labels, PausedBy, Record, Times,
    once::Key,
    page::Filter,
    settings::{Network, Settings, TimeoutAction, Timeouts},
    state::State,
    token::AccessToken,
};
use hearth_proto::id::{CapsuleId, TeamId};
use sqlx::{PgConnection, types::Json};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use uuid::Uuid;

struct Row {
    id: Uuid,
    team_id: Uuid,
    template: String,
    host_id: Option<String>,
    state: String,
    reason: String,
    paused_by: String,
    vcpus: i32,
    memory_mb: i64,
    disk_mb: i64,
    disk_used_mb: i64,
    timeout_sec: i64,
    timeout_action: String,
    auto_resume: bool,
    public_ports: Vec<i32>,
    network: Option<Json<Network>>,
    access_token: String,
    name: String,
    metadata: Json<BTreeMap<String, String>>,
    created_at: OffsetDateTime,
    started_at: Option<OffsetDateTime>,
    last_active_at: Option<OffsetDateTime>,
    updated_at: OffsetDateTime,
}

/// The columns of [`Row`], and what follows them.
macro_rules! select {
    ($rest:literal $(, $argument:expr)*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT id, team_id, template, host_id, state, reason, paused_by, vcpus, memory_mb, disk_mb,
                      disk_used_mb, timeout_sec, timeout_action, auto_resume, public_ports,
                      network AS "network: Json<Network>", access_token, name,
                      metadata AS "metadata: Json<BTreeMap<String, String>>",
                      created_at, started_at, last_active_at, updated_at
               FROM capsules "# + $rest
            $(, $argument)*
        )
    };
}

impl TryFrom<Row> for Record {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let number = |value: i64| u64::try_from(value).map_err(unreadable);
        let ports = row.public_ports.into_iter().map(u16::try_from).collect::<Result<_, _>>();
        Ok(Self {
            id: CapsuleId::from_uuid(row.id),
            team: TeamId::from_uuid(row.team_id),
            template: row.template,
            host_id: row.host_id.unwrap_or_default(),
            state: parse(&row.state)?,
            reason: row.reason,
            paused_by: one_of(&row.paused_by, [PausedBy::User, PausedBy::Host], PausedBy::as_str)?,
            under_way: None,
            vcpus: u32::try_from(row.vcpus).map_err(unreadable)?,
            memory_mb: number(row.memory_mb)?,
            disk: Disk { size_mb: number(row.disk_mb)?, used_mb: number(row.disk_used_mb)? },
            settings: Settings {
                timeouts: Timeouts {
                    idle_sec: number(row.timeout_sec)?,
                    action: one_of(
                        &row.timeout_action,
                        [TimeoutAction::Pause, TimeoutAction::Destroy],
                        TimeoutAction::as_str,
                    )?,
                },
                auto_resume: row.auto_resume,
                public_ports: ports.map_err(unreadable)?,
                network: row.network.map(|network| network.0),
            },
            token: AccessToken::stored(row.access_token),
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

/// A word in a column that is none of those it may be.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not known")]
struct UnknownWord(String);

/// The value whose word it is.
fn one_of<T: Copy>(text: &str, all: [T; 2], word: impl Fn(T) -> &'static str) -> Result<T, StoreError> {
    let found = all.into_iter().find(|value| word(*value) == text);
    found.ok_or_else(|| unreadable(UnknownWord(text.to_owned())))
}

fn parse(state: &str) -> Result<State, StoreError> {
    State::parse(state).map_err(unreadable)
}

fn records(rows: Vec<Row>) -> Result<Vec<Record>, StoreError> {
    rows.into_iter().map(Record::try_from).collect()
}

impl Store {
    /// New rows, and the request that made them: all or none.
    pub(crate) async fn create(&self, records: &[Record], key: Option<&Key>) -> Result<(), StoreError> {
        if let ([record], None) = (records, key) {
            // The common case needs no transaction.
            return self.query(async { insert(&mut *self.pool.acquire().await?, record).await }).await;
        }
        let create = async {
            let mut transaction = self.pool.begin().await?;
            for record in records {
                insert(&mut transaction, record).await?;
            }
            if let Some(key) = key {
                let ids: Vec<Uuid> = records.iter().map(|record| record.id.uuid()).collect();
                requests::insert(&mut transaction, key, &ids, None).await?;
            }
            transaction.commit().await
        };
        self.query(create).await
    }

    /// A team's capsule, in whatever state.
    pub(crate) async fn get(&self, team: TeamId, id: CapsuleId) -> Result<Option<Record>, StoreError> {
        let select = select!("WHERE id = $1 AND team_id = $2", id.uuid(), team.uuid());
        self.query(select.fetch_optional(&self.pool)).await?.map(Record::try_from).transpose()
    }

    /// The same, whoever's it is.
    pub(crate) async fn find(&self, id: CapsuleId) -> Result<Option<Record>, StoreError> {
        let select = select!("WHERE id = $1", id.uuid());
        self.query(select.fetch_optional(&self.pool)).await?.map(Record::try_from).transpose()
    }

    /// A team's capsules that are over, of a page and one more, the newest first.
    pub(crate) async fn over(&self, team: TeamId, filter: &Filter) -> Result<Vec<Record>, StoreError> {
        let states: Vec<String> = filter.over().into_iter().map(|state| state.as_str().to_owned()).collect();
        let select = select!(
            "WHERE team_id = $1 AND state = ANY($2) AND metadata @> $3
                AND ($4::timestamptz IS NULL OR (created_at, id) < ($4, $5))
             ORDER BY created_at DESC, id DESC LIMIT $6",
            team.uuid(),
            &states,
            Json(&filter.metadata) as _,
            filter.after.map(|after| after.created()),
            filter.after.map(|after| after.id().uuid()),
            i64::try_from(filter.limit()).unwrap_or(i64::MAX).saturating_add(1)
        );
        records(self.query(select.fetch_all(&self.pool)).await?)
    }

    /// Every capsule that has not ended, of all teams.
    pub(crate) async fn active(&self) -> Result<Vec<Record>, StoreError> {
        let select = select!("WHERE state NOT IN ('stopped', 'failed')");
        records(self.query(select.fetch_all(&self.pool)).await?)
    }

    /// The state in a capsule's row, whoever's it is.
    pub(crate) async fn state_of(&self, id: CapsuleId) -> Result<Option<State>, StoreError> {
        let select = sqlx::query_scalar!("SELECT state FROM capsules WHERE id = $1", id.uuid());
        let state = self.query(select.fetch_optional(&self.pool)).await?;
        state.as_deref().map(parse).transpose()
    }

    /// Writes all that can change of a capsule. An older change never overwrites a newer one.
    pub(crate) async fn change(&self, record: &Record) -> Result<(), StoreError> {
        let settings = &record.settings;
        let ports: Vec<i32> = settings.public_ports.iter().map(|port| i32::from(*port)).collect();
        let update = sqlx::query!(
            "UPDATE capsules
             SET state = $2, reason = $3, paused_by = $4, disk_mb = $5, disk_used_mb = $6, timeout_sec = $7,
                 timeout_action = $8, auto_resume = $9, public_ports = $10, name = $11, metadata = $12,
                 last_active_at = $13, updated_at = $14
             WHERE id = $1 AND updated_at <= $14",
            record.id.uuid(),
            record.state.as_str(),
            record.reason,
            record.paused_by.as_str(),
            signed(record.disk.size_mb),
            signed(record.disk.used_mb),
            signed(settings.timeouts.idle_sec),
            settings.timeouts.action.as_str(),
            settings.auto_resume,
            &ports,
            record.labels.name,
            Json(&record.labels.metadata) as _,
            record.times.last_active,
            record.times.updated,
        );
        self.query(update.execute(&self.pool)).await?;
        Ok(())
    }
}

async fn insert(connection: &mut PgConnection, record: &Record) -> Result<(), sqlx::Error> {
    let settings = &record.settings;
    let ports: Vec<i32> = settings.public_ports.iter().map(|port| i32::from(*port)).collect();
    sqlx::query!(
        "INSERT INTO capsules (id, team_id, template, host_id, state, reason, paused_by, vcpus, memory_mb, disk_mb,
                               disk_used_mb, timeout_sec, timeout_action, auto_resume, public_ports, network,
                               access_token, name, metadata, created_at, started_at, last_active_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
                 $23)",
        record.id.uuid(),
        record.team.uuid(),
        record.template,
        record.host_id,
        record.state.as_str(),
        record.reason,
        record.paused_by.as_str(),
        i32::try_from(record.vcpus).unwrap_or(i32::MAX),
        signed(record.memory_mb),
        signed(record.disk.size_mb),
        signed(record.disk.used_mb),
        signed(settings.timeouts.idle_sec),
        settings.timeouts.action.as_str(),
        settings.auto_resume,
        &ports,
        settings.network.as_ref().map(Json) as _,
        record.token.reveal(),
        record.labels.name,
        Json(&record.labels.metadata) as _,
        record.times.created,
        record.times.started,
        record.times.last_active,
        record.times.updated,
    )
    .execute(connection)
    .await?;
    Ok(())
}
