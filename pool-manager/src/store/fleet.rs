//! Rows of hosts and templates.

use super::{Store, StoreError};
use crate::{host::HostFacts, template::Template};
use time::OffsetDateTime;

impl Store {
    /// A host was heard of.
    pub(crate) async fn host(&self, facts: &HostFacts, endpoint: &str) -> Result<(), StoreError> {
        let upsert = sqlx::query(
            "INSERT INTO hosts (id, endpoint, engine, accelerator, cpus, memory_mb) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (id) DO UPDATE SET endpoint = excluded.endpoint, engine = excluded.engine,
                 accelerator = excluded.accelerator, cpus = excluded.cpus, memory_mb = excluded.memory_mb,
                 last_seen = now()",
        )
        .bind(&facts.id)
        .bind(endpoint)
        .bind(&facts.engine)
        .bind(&facts.accelerator)
        .bind(i32::try_from(facts.cpus).unwrap_or(i32::MAX))
        .bind(i64::try_from(facts.memory_mb).unwrap_or(i64::MAX));
        self.query(upsert.execute(&self.pool)).await?;
        Ok(())
    }

    /// A template is there, or has a newer snapshot.
    pub(crate) async fn template(&self, template: &Template) -> Result<(), StoreError> {
        let created = i128::from(template.created_at_ms) * 1_000_000;
        let created =
            OffsetDateTime::from_unix_timestamp_nanos(created).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let upsert = sqlx::query(
            "INSERT INTO templates (name, snapshot_key, vcpus, memory_mb, size_bytes, languages, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (name) DO UPDATE SET snapshot_key = excluded.snapshot_key, vcpus = excluded.vcpus,
                 memory_mb = excluded.memory_mb, size_bytes = excluded.size_bytes, languages = excluded.languages,
                 created_at = excluded.created_at",
        )
        .bind(&template.name)
        .bind(&template.snapshot_key)
        .bind(i32::try_from(template.vcpus).unwrap_or(i32::MAX))
        .bind(i64::try_from(template.memory_mb).unwrap_or(i64::MAX))
        .bind(i64::try_from(template.size_bytes).unwrap_or(i64::MAX))
        .bind(&template.languages)
        .bind(created);
        self.query(upsert.execute(&self.pool)).await?;
        Ok(())
    }
}
