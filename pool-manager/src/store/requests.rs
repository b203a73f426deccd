//! Rows of requests that are answered once.

use super::{Store, StoreError};
use crate::capsule::once::Key;
use hearth_proto::id::{CapsuleId, SnapshotId};
use sqlx::PgConnection;
use uuid::Uuid;

/// What an earlier request made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) digest: Vec<u8>,
    pub(crate) capsules: Vec<CapsuleId>,
    pub(crate) snapshot: Option<SnapshotId>,
}

impl Store {
    /// The earlier request with this key, if there was one.
    pub(crate) async fn request(&self, key: &Key) -> Result<Option<Made>, StoreError> {
        let select = sqlx::query!(
            "SELECT digest, capsules, snapshot FROM requests WHERE team_id = $1 AND key = $2",
            key.team.uuid(),
            key.text,
        );
        let row = self.query(select.fetch_optional(&self.pool)).await?;
        Ok(row.map(|row| Made {
            digest: row.digest,
            capsules: row.capsules.into_iter().map(CapsuleId::from_uuid).collect(),
            snapshot: row.snapshot.map(SnapshotId::from_uuid),
        }))
    }
}

/// A request and what it made, in the transaction that makes it.
pub(super) async fn insert(
    connection: &mut PgConnection,
    key: &Key,
    capsules: &[Uuid],
    snapshot: Option<Uuid>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO requests (team_id, key, digest, capsules, snapshot) VALUES ($1, $2, $3, $4, $5)",
        key.team.uuid(),
        key.text,
        &key.digest[..],
        capsules,
        snapshot,
    )
    .execute(connection)
    .await?;
    Ok(())
}
