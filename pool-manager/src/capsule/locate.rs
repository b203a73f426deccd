//! Where a capsule is, for who wants to use it: one that may come back from disk by itself is brought back first.

use super::{
    PausedBy, Record, lifecycle::Lifecycle, lookup::Lookup, operation::Kind, page::Wanted, settings,
    state::State,
};
use crate::{error::Refused, host::Host};
use hearth_proto::id::{CapsuleId, TeamId};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// How long a caller waits for a capsule to come back. A resume takes 0.2 s; before it, a pause may have to end.
const WAIT: Duration = Duration::from_secs(60);

/// A running capsule's host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) host_id: String,
    pub(crate) endpoint: Arc<str>,
}

/// What a caller has who wants to reach a port.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    /// Of its key.
    pub(crate) team: Option<TeamId>,
    /// Empty: none.
    pub(crate) access_token: String,
}

/// Finds capsules.
#[derive(Debug, Clone)]
pub(crate) struct Locator {
    pub(crate) lookup: Lookup,
    pub(crate) lifecycle: Lifecycle,
}

impl Locator {
    /// Where a team's running capsule is. Counts as use.
    pub(crate) async fn locate(&self, team: TeamId, id: CapsuleId) -> Result<Place, Refused> {
        let record = self.lookup.get(team, id).await?;
        self.awake(record).await
    }

    /// The same for a connection to a port of a capsule, whoever's it is.
    pub(crate) async fn locate_port(
        &self,
        id: CapsuleId,
        port: u32,
        visitor: &Visitor,
    ) -> Result<Place, Refused> {
        let port = settings::port("port", port)?;
        let record = self.lookup.find(id).await?;
        if !may_reach(&record, port, visitor) {
            return Err(Refused::Forbidden(format!("no right to port {port} of this capsule")));
        }
        self.awake(record).await
    }

    async fn awake(&self, record: Record) -> Result<Place, Refused> {
        let id = record.id;
        let running = match timeout(WAIT, self.wake(record)).await {
            Ok(running) => running?,
            Err(_) => {
                return Err(Refused::Late(format!("the capsule was not back after {} s", WAIT.as_secs())));
            }
        };
        self.lifecycle.clerk.touch(id).await;
        let host: &Host = &self.lifecycle.sites.of(&running.host_id)?.host;
        Ok(Place { host_id: running.host_id, endpoint: Arc::clone(&host.endpoint) })
    }

    /// Brings it back if it may be.
    async fn wake(&self, mut record: Record) -> Result<Record, Refused> {
        loop {
            let (team, id) = (record.team, record.id);
            record = match (record.shown(), record.under_way) {
                // A capture lets it run on in a moment, which its host waits for.
                (Wanted::At(State::Running) | Wanted::Snapshotting, _) => return Ok(record),
                (Wanted::At(State::Paused), None) if wakes(&record) => {
                    self.lifecycle.resume(team, id).await?
                }
                (Wanted::Resuming, Some(Kind::Resume)) => self.lifecycle.resume(team, id).await?,
                // It ends on disk, or it runs on.
                (Wanted::Pausing, Some(Kind::Pause)) if record.settings.auto_resume => {
                    self.lifecycle.settled(team, id).await?
                }
                (Wanted::At(_) | Wanted::Pausing | Wanted::Resuming, Some(kind)) => {
                    return Err(Refused::not_running(kind.as_str()));
                }
                (Wanted::At(_) | Wanted::Pausing | Wanted::Resuming, None) => {
                    return Err(Refused::not_running(record.state.as_str()));
                }
            };
        }
    }
}

/// Whether any use brings a paused capsule back.
fn wakes(record: &Record) -> bool {
    record.settings.auto_resume || record.paused_by == PausedBy::Host
}

/// Whether a visitor may use a port.
fn may_reach(record: &Record, port: u16, visitor: &Visitor) -> bool {
    record.settings.public_ports.contains(&port)
        || visitor.team == Some(record.team)
        || record.token.opens(&visitor.access_token)
}
