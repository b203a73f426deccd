//! Reading users' capsules: rows, under what is known live. While the database is away, what is known live alone.

use super::{Record, clerk::Clerk, state::State};
use crate::{
    error::Refused,
    host::Host,
    store::{Store, StoreError},
};
use hearth_proto::id::{CapsuleId, TeamId};
use std::{collections::HashMap, sync::Arc};

/// Reads capsules.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    pub(crate) host: Host,
    pub(crate) store: Store,
    pub(crate) clerk: Clerk,
}

impl Lookup {
    /// A team's capsule, also one that has ended.
    pub(crate) async fn get(&self, team: TeamId, id: CapsuleId) -> Result<Record, Refused> {
        let live = self.clerk.get(team, id).await.map_err(|_gone| Refused::stopping())?;
        let found = match live {
            Some(record) => Some(record),
            None => self.store.get(team, id).await.map_err(|error| error.refused())?,
        };
        found.ok_or_else(|| Refused::NotFound("capsule not found".to_owned()))
    }

    /// A team's capsules that have not ended, the newest first.
    pub(crate) async fn list(&self, team: TeamId) -> Result<Vec<Record>, Refused> {
        let live = self.clerk.list(team).await.map_err(|_gone| Refused::stopping())?;
        let rows = match self.store.list(team).await {
            Ok(rows) => rows,
            Err(StoreError::Away(error)) => {
                tracing::warn!(%error, "the database is away, capsules are listed from memory");
                Vec::new()
            }
            Err(error) => return Err(error.refused()),
        };
        let mut by_id: HashMap<CapsuleId, Record> =
            live.into_iter().map(|record| (record.id, record)).collect();
        for row in rows {
            if by_id.contains_key(&row.id) {
                continue;
            }
            // The row may be behind: a capsule that ended a moment ago is in the book only as ended.
            match self.clerk.get(team, row.id).await.map_err(|_gone| Refused::stopping())? {
                Some(record) if record.state.is_over() => {}
                Some(record) => drop(by_id.insert(record.id, record)),
                None => drop(by_id.insert(row.id, row)),
            }
        }
        let mut records: Vec<Record> = by_id.into_values().collect();
        records.sort_by_key(|record| std::cmp::Reverse((record.times.created, record.id)));
        Ok(records)
    }

    /// Where a team's running or paused capsule is: host id and endpoint. Counts as use. Whether a paused one comes back
    /// when it is used is its host's decision.
    pub(crate) async fn locate(&self, team: TeamId, id: CapsuleId) -> Result<(String, Arc<str>), Refused> {
        let record = self.get(team, id).await?;
        if !matches!(record.state, State::Running | State::Paused) {
            let state = record.state.as_str();
            return Err(Refused::WrongState(format!("the capsule is {state}, not running")));
        }
        self.clerk.touch(id).await;
        Ok((record.host_id, Arc::clone(&self.host.endpoint)))
    }
}
