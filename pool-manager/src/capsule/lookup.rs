//! Reading users' capsules: what is known live, over the rows of those that are over. While the database is away, what is
//! known live alone.

use super::{
    Record,
    clerk::Clerk,
    page::{self, Cursor, Filter},
};
use crate::{
    error::Refused,
    store::{Store, StoreError},
};
use hearth_proto::id::{CapsuleId, TeamId};

/// Reads capsules.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    pub(crate) store: Store,
    pub(crate) clerk: Clerk,
}

impl Lookup {
    /// A team's capsule, also one that has ended.
    pub(crate) async fn get(&self, team: TeamId, id: CapsuleId) -> Result<Record, Refused> {
        let found = match self.clerk.get(team, id).await? {
            Some(record) => Some(record),
            None => self.store.get(team, id).await.map_err(|error| error.refused())?,
        };
        found.ok_or_else(Refused::no_capsule)
    }

    /// The same, whoever's it is.
    pub(crate) async fn find(&self, id: CapsuleId) -> Result<Record, Refused> {
        let found = match self.clerk.find(id).await? {
            Some(record) => Some(record),
            None => self.store.find(id).await.map_err(|error| error.refused())?,
        };
        found.ok_or_else(Refused::no_capsule)
    }

    /// A page of a team's capsules, the newest first, and where the next one goes on. All that have not ended are in
    /// memory; those that have, are asked of the database.
    pub(crate) async fn list(
        &self,
        team: TeamId,
        filter: &Filter,
    ) -> Result<(Vec<Record>, Option<Cursor>), Refused> {
        let live = self.clerk.list(team).await?;
        let over = filter.over();
        let rows = if over.is_empty() { Vec::new() } else { self.rows(team, filter).await? };
        Ok(page::page(filter, live, rows))
    }

    async fn rows(&self, team: TeamId, filter: &Filter) -> Result<Vec<Record>, Refused> {
        match self.store.over(team, filter).await {
            Ok(rows) => Ok(rows),
            Err(StoreError::Away(error)) => {
                tracing::warn!(%error, "the database is away, capsules are listed from memory");
                Ok(Vec::new())
            }
            Err(error) => Err(error.refused()),
        }
    }
}
