//! Rows of snapshots.

use super::{Store, StoreError, signed, unreadable};
use crate::{capsule::once::Key, snapshot::Snapshot};
use hearth_proto::id::{CapsuleId, SnapshotId, TeamId};
use time::OffsetDateTime;
use uuid::Uuid;

/// Most snapshots in one list.
const LIST_MAX: i64 = 10_000;
/// Most files removed in one go.
const DISCARDED_MAX: i64 = 256;

/// What came of publishing a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    Done,
    /// The team has another one of that name.
    NameTaken,
}

struct Row {
    id: Uuid,
    team_id: Uuid,
    name: String,
    capsule_id: Uuid,
    template: String,
    host_id: String,
    vcpus: i32,
    memory_mb: i64,
    size_bytes: i64,
    created_at: OffsetDateTime,
}

impl TryFrom<Row> for Snapshot {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: SnapshotId::from_uuid(row.id),
            team: TeamId::from_uuid(row.team_id),
            name: row.name,
            capsule: CapsuleId::from_uuid(row.capsule_id),
            template: row.template,
            host_id: row.host_id,
            vcpus: u32::try_from(row.vcpus).map_err(unreadable)?,
            memory_mb: u64::try_from(row.memory_mb).map_err(unreadable)?,
            size_bytes: u64::try_from(row.size_bytes).map_err(unreadable)?,
            created: row.created_at,
        })
    }
}

/// The columns of [`Row`], and what follows them.
macro_rules! select {
    ($rest:literal $(, $argument:expr)*) => {
        sqlx::query_as!(
            Row,
            "SELECT id, team_id, name, capsule_id, template, host_id, vcpus, memory_mb, size_bytes, created_at
             FROM snapshots " + $rest
            $(, $argument)*
        )
    };
}

impl Store {
    /// A team's snapshot by its name.
    pub(crate) async fn snapshot(&self, team: TeamId, name: &str) -> Result<Option<Snapshot>, StoreError> {
        let select = select!("WHERE team_id = $1 AND name = $2 AND state = 'ready'", team.uuid(), name);
        self.query(select.fetch_optional(&self.pool)).await?.map(Snapshot::try_from).transpose()
    }

    /// A snapshot that was not deleted.
    pub(crate) async fn snapshot_by_id(&self, id: SnapshotId) -> Result<Option<Snapshot>, StoreError> {
        let select = select!("WHERE id = $1 AND state = 'ready'", id.uuid());
        self.query(select.fetch_optional(&self.pool)).await?.map(Snapshot::try_from).transpose()
    }

    /// A team's snapshots, the newest first.
    pub(crate) async fn snapshots(&self, team: TeamId) -> Result<Vec<Snapshot>, StoreError> {
        let select = select!(
            "WHERE team_id = $1 AND state = 'ready' ORDER BY created_at DESC, id DESC LIMIT $2",
            team.uuid(),
            LIST_MAX
        );
        self.query(select.fetch_all(&self.pool)).await?.into_iter().map(Snapshot::try_from).collect()
    }

    /// A snapshot is about to be taken.
    pub(crate) async fn making(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let insert = sqlx::query!(
            "INSERT INTO snapshots (id, team_id, name, state, capsule_id, template, host_id, vcpus, memory_mb, created_at)
             VALUES ($1, $2, $3, 'making', $4, $5, $6, $7, $8, $9)",
            snapshot.id.uuid(),
            snapshot.team.uuid(),
            snapshot.name,
            snapshot.capsule.uuid(),
            snapshot.template,
            snapshot.host_id,
            i32::try_from(snapshot.vcpus).unwrap_or(i32::MAX),
            signed(snapshot.memory_mb),
            snapshot.created,
        );
        self.query(insert.execute(&self.pool)).await?;
        Ok(())
    }

    /// A snapshot was taken: from here on its name means it. With `overwrite`, in place of what the name meant.
    pub(crate) async fn publish(
        &self,
        snapshot: &Snapshot,
        overwrite: bool,
        key: Option<&Key>,
    ) -> Result<Published, StoreError> {
        let publish = async {
            let mut transaction = self.pool.begin().await?;
            if overwrite {
                sqlx::query!(
                    "UPDATE snapshots SET state = 'deleted' WHERE team_id = $1 AND name = $2 AND state = 'ready'",
                    snapshot.team.uuid(),
                    snapshot.name,
                )
                .execute(&mut *transaction)
                .await?;
            }
            sqlx::query!(
                "UPDATE snapshots SET state = 'ready', size_bytes = $2 WHERE id = $1",
                snapshot.id.uuid(),
                signed(snapshot.size_bytes),
            )
            .execute(&mut *transaction)
            .await?;
            if let Some(key) = key {
                super::requests::insert(&mut transaction, key, &[], Some(snapshot.id.uuid())).await?;
            }
            transaction.commit().await
        };
        match self.query(publish).await {
            Ok(()) => Ok(Published::Done),
            Err(StoreError::Refused(error)) if is_name_taken(&error) => Ok(Published::NameTaken),
            Err(error) => Err(error),
        }
    }

    /// A snapshot is not there any more for anybody; its files still have to go.
    pub(crate) async fn discard(&self, id: SnapshotId) -> Result<(), StoreError> {
        let update = sqlx::query!("UPDATE snapshots SET state = 'deleted' WHERE id = $1", id.uuid());
        self.query(update.execute(&self.pool)).await?;
        Ok(())
    }

    /// The same for all that a pool-manager which is no more was taking.
    pub(crate) async fn discard_unfinished(&self) -> Result<(), StoreError> {
        let update = sqlx::query!("UPDATE snapshots SET state = 'deleted' WHERE state = 'making'");
        self.query(update.execute(&self.pool)).await?;
        Ok(())
    }

    /// Snapshots of a host whose files have to go.
    pub(crate) async fn discarded(&self, host_id: &str) -> Result<Vec<SnapshotId>, StoreError> {
        let select = sqlx::query_scalar!(
            "SELECT id FROM snapshots WHERE host_id = $1 AND state = 'deleted' LIMIT $2",
            host_id,
            DISCARDED_MAX
        );
        let ids = self.query(select.fetch_all(&self.pool)).await?;
        Ok(ids.into_iter().map(SnapshotId::from_uuid).collect())
    }

    /// Its files are gone.
    pub(crate) async fn forget(&self, id: SnapshotId) -> Result<(), StoreError> {
        let delete = sqlx::query!("DELETE FROM snapshots WHERE id = $1 AND state = 'deleted'", id.uuid());
        self.query(delete.execute(&self.pool)).await?;
        Ok(())
    }
}

fn is_name_taken(error: &sqlx::Error) -> bool {
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    constraint == Some("snapshots_name_unique")
}
