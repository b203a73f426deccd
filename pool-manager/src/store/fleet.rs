//! Rows of hosts and templates.

use super::{Store, StoreError, signed};
use crate::{
    host::{HostFacts, status::HostStatus},
    template::Template,
};
use time::OffsetDateTime;

/// Most hosts in one list.
const HOSTS_MAX: i64 = 1000;

/// A host's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostRow {
    pub(crate) id: String,
    pub(crate) engine: String,
    pub(crate) accelerator: String,
    pub(crate) cpus: i32,
    pub(crate) memory_mb: i64,
    pub(crate) registered_at: OffsetDateTime,
    pub(crate) last_seen: OffsetDateTime,
}

impl Store {
    /// A host is heard of: its heartbeat.
    pub(crate) async fn host(&self, facts: &HostFacts, endpoint: &str) -> Result<(), StoreError> {
        let upsert = sqlx::query!(
            "INSERT INTO hosts (id, endpoint, engine, accelerator, cpus, memory_mb, status)
             VALUES ($1, $2, $3, $4, $5, $6, 'online')
             ON CONFLICT (id) DO UPDATE SET endpoint = excluded.endpoint, engine = excluded.engine,
                 accelerator = excluded.accelerator, cpus = excluded.cpus, memory_mb = excluded.memory_mb,
                 status = excluded.status, last_seen = now()",
            facts.id,
            endpoint,
            facts.engine,
            facts.accelerator,
            i32::try_from(facts.cpus).unwrap_or(i32::MAX),
            signed(facts.memory_mb),
        );
        self.query(upsert.execute(&self.pool)).await?;
        Ok(())
    }

    /// A host is not heard of.
    pub(crate) async fn host_status(&self, id: &str, status: HostStatus) -> Result<(), StoreError> {
        let update = sqlx::query!("UPDATE hosts SET status = $2 WHERE id = $1", id, status.as_str());
        self.query(update.execute(&self.pool)).await?;
        Ok(())
    }

    /// Every host that was ever heard of, the oldest first.
    pub(crate) async fn hosts(&self) -> Result<Vec<HostRow>, StoreError> {
        let select = sqlx::query_as!(
            HostRow,
            "SELECT id, engine, accelerator, cpus, memory_mb, registered_at, last_seen FROM hosts
             ORDER BY registered_at, id LIMIT $1",
            HOSTS_MAX
        );
        self.query(select.fetch_all(&self.pool)).await
    }

    /// A template is there, or has a newer snapshot.
    pub(crate) async fn template(&self, template: &Template) -> Result<(), StoreError> {
        let created = i128::from(template.created_at_ms) * 1_000_000;
        let created =
            OffsetDateTime::from_unix_timestamp_nanos(created).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let upsert = sqlx::query!(
            "INSERT INTO templates (name, snapshot_key, vcpus, memory_mb, size_bytes, languages, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (name) DO UPDATE SET snapshot_key = excluded.snapshot_key, vcpus = excluded.vcpus,
                 memory_mb = excluded.memory_mb, size_bytes = excluded.size_bytes, languages = excluded.languages,
                 created_at = excluded.created_at",
            template.name,
            template.snapshot_key,
            i32::try_from(template.vcpus).unwrap_or(i32::MAX),
            signed(template.memory_mb),
            signed(template.size_bytes),
            &template.languages,
            created,
        );
        self.query(upsert.execute(&self.pool)).await?;
        Ok(())
    }
}
