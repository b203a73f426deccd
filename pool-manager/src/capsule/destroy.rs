//! The end of a user's capsule, at its user's wish.

use super::{
    clerk::{Clerk, End},
    state::State,
};
use crate::{error::Refused, site::Sites, store::Store};
use hearth_proto::id::{CapsuleId, TeamId};
use hearth_service::shutdown::Shutdown;

/// Ends capsules.
#[derive(Debug, Clone)]
pub(crate) struct Destruction {
    pub(crate) sites: Sites,
    pub(crate) store: Store,
    pub(crate) clerk: Clerk,
    pub(crate) shutdown: Shutdown,
}

impl Destruction {
    /// Destroys a team's capsule, whatever else is under way with it; done already is done. When the future is dropped,
    /// or the host is away, the end is still reached: the row says `stopping`, and the comparison with the host acts on
    /// it.
    pub(crate) async fn destroy(&self, team: TeamId, id: CapsuleId) -> Result<(), Refused> {
        match self.clerk.end(team, id).await? {
            End::Over => Ok(()),
            End::Now { host_id } => self.through(id, host_id).await,
            End::Unknown => match self.store.get(team, id).await.map_err(|error| error.refused())? {
                None => Err(Refused::no_capsule()),
                Some(record) if record.state == State::Stopped => Ok(()),
                Some(record) => {
                    self.clerk.insert(record, None, None).await;
                    match self.clerk.end(team, id).await? {
                        End::Now { host_id } => self.through(id, host_id).await,
                        End::Over | End::Unknown => Ok(()),
                    }
                }
            },
        }
    }

    async fn through(&self, id: CapsuleId, host_id: String) -> Result<(), Refused> {
        let this = self.clone();
        let task = self.shutdown.tasks().spawn(async move {
            let agent = &this.sites.of(&host_id)?.host.agent;
            let destroyed = agent.destroy(id).await;
            if destroyed.is_ok() {
                this.clerk.ended(id).await;
            }
            destroyed.map_err(|error| {
                tracing::warn!(capsule.id = %id, %error, "capsule is destroyed later");
                Refused::Away("the capsule's host did not answer; it is destroyed when it does".to_owned())
            })
        });
        task.await.unwrap_or_else(|panic| {
            tracing::error!(capsule.id = %id, %panic, "destroy panicked");
            Err(Refused::Internal)
        })
    }
}
