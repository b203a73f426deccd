//! Rows of `audit_log`.

use super::{Store, StoreError};
use hearth_proto::id::{KeyId, TeamId};
use time::OffsetDateTime;
use uuid::Uuid;

/// A change that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) at: OffsetDateTime,
    pub(crate) team: TeamId,
    pub(crate) key: KeyId,
    pub(crate) action: &'static str,
    pub(crate) resource_type: &'static str,
    pub(crate) resource_id: String,
    pub(crate) status: u16,
    pub(crate) request_id: String,
}

/// A change as it is read back.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    pub(crate) id: Uuid,
    pub(crate) at: OffsetDateTime,
    pub(crate) key_id: Uuid,
    pub(crate) key_name: Option<String>,
    pub(crate) action: String,
    pub(crate) resource_type: String,
    pub(crate) resource_id: String,
    pub(crate) status: i32,
    pub(crate) request_id: String,
}

/// Which changes to read: a team's, the newest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// Only what is older than this row.
    pub(crate) before: Option<(OffsetDateTime, Uuid)>,
    pub(crate) resource_type: Option<String>,
    pub(crate) action: Option<String>,
    pub(crate) limit: i64,
}

impl Store {
    /// Adds rows; one that is there already is left alone.
    pub(crate) async fn add_audit(&self, rows: &[Row]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let column = |of: fn(&Row) -> String| rows.iter().map(of).collect::<Vec<_>>();
        sqlx::query!(
            "INSERT INTO audit_log (id, at, team_id, key_id, action, resource_type, resource_id, status, request_id)
             SELECT * FROM UNNEST($1::uuid[], $2::timestamptz[], $3::uuid[], $4::uuid[], $5::text[], $6::text[],
                                  $7::text[], $8::int[], $9::text[])
             ON CONFLICT (id) DO NOTHING",
            &rows.iter().map(|row| row.id).collect::<Vec<_>>(),
            &rows.iter().map(|row| row.at).collect::<Vec<_>>(),
            &rows.iter().map(|row| row.team.uuid()).collect::<Vec<_>>(),
            &rows.iter().map(|row| row.key.uuid()).collect::<Vec<_>>(),
            &column(|row| row.action.to_owned()),
            &column(|row| row.resource_type.to_owned()),
            &column(|row| row.resource_id.clone()),
            &rows.iter().map(|row| i32::from(row.status)).collect::<Vec<_>>(),
            &column(|row| row.request_id.clone()),
        )
        .execute(&self.pool)
        .await
        .map_err(StoreError::of("cannot write the audit log"))?;
        Ok(())
    }

    /// A team's changes.
    pub(crate) async fn audit(&self, team: TeamId, wanted: &Wanted) -> Result<Vec<Logged>, StoreError> {
        let (at, id) = wanted.before.unzip();
        sqlx::query_as!(
            Logged,
            r#"SELECT log.id, log.at, log.key_id, keys.name AS "key_name?", log.action, log.resource_type,
                      log.resource_id, log.status, log.request_id
               FROM audit_log AS log LEFT JOIN api_keys AS keys ON keys.id = log.key_id
               WHERE log.team_id = $1
                 AND ($2::timestamptz IS NULL OR (log.at, log.id) < ($2, $3::uuid))
                 AND ($4::text IS NULL OR log.resource_type = $4)
                 AND ($5::text IS NULL OR log.action = $5)
               ORDER BY log.at DESC, log.id DESC LIMIT $6"#,
            team.uuid(),
            at,
            id,
            wanted.resource_type.as_deref(),
            wanted.action.as_deref(),
            wanted.limit,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::of("cannot read the audit log"))
    }
}
