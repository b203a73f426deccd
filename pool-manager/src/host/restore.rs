//! Restoring capsules: the id is held before the agent hears of it, so whatever happens then, it has an owner.

use super::{
    client::{Agent, AgentError, Start},
    held::{Held, Holds},
};
use hearth_proto::id::CapsuleId;

/// Restores capsules on one host.
#[derive(Debug, Clone)]
pub(crate) struct Restorer {
    pub(crate) agent: Agent,
    pub(crate) holds: Holds,
}

impl Restorer {
    /// A new capsule that waits with stopped vCPUs. Dropping the future destroys it.
    pub(crate) async fn parked(&self, template: &str) -> Result<Held, AgentError> {
        let held = self.hold()?;
        self.agent.restore_parked(held.id(), template).await?;
        Ok(held)
    }

    /// A new capsule that runs. Dropping the future destroys it.
    pub(crate) async fn running(&self, template: &str, start: Start) -> Result<Held, AgentError> {
        let held = self.hold()?;
        self.agent.restore_running(held.id(), template, start).await?;
        Ok(held)
    }

    fn hold(&self) -> Result<Held, AgentError> {
        self.holds
            .hold(CapsuleId::new())
            .ok_or_else(|| AgentError::NoCapacity("pool-manager holds its maximum of capsules".to_owned()))
    }
}
