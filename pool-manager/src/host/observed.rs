//! A capsule as its host sees it: the wire message, validated.

use crate::capsule::Disk;
use hearth_proto::{
    id::{CapsuleId, IdError},
    wire::agent,
};

/// What a host says about one capsule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) id: CapsuleId,
    pub(crate) template: String,
    pub(crate) state: Live,
    pub(crate) figures: Figures,
}

/// What a host measured of a capsule, at most ten seconds ago.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) disk: Disk,
    /// Since it was made.
    pub(crate) cpu_us: u64,
    /// Milliseconds since the epoch; zero: not known.
    pub(crate) last_active_ms: i64,
}

/// The state of a capsule on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Live {
    Starting,
    /// Restored, vCPUs stopped, waits in a pool.
    Parked,
    Running,
    /// On the way to its host's disk or back: not dead, and where it ends will be said.
    Moving,
    /// On its host's disk.
    Paused,
    Stopping,
    Stopped {
        reason: String,
    },
    Failed {
        reason: String,
    },
}

impl Live {
    /// Whether it will never run again.
    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::Stopped { .. } | Self::Failed { .. } => true,
            Self::Starting | Self::Parked | Self::Running | Self::Moving | Self::Paused | Self::Stopping => {
                false
            }
        }
    }
}

/// A message that breaks the contract.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObservedError {
    #[error("the agent sent a bad capsule id")]
    Id(#[from] IdError),
    #[error("the agent sent capsule {id} in unknown state {value}")]
    State { id: CapsuleId, value: i32 },
}

impl TryFrom<agent::Capsule> for Observed {
    type Error = ObservedError;

    fn try_from(wire: agent::Capsule) -> Result<Self, ObservedError> {
        let id: CapsuleId = wire.capsule_id.parse()?;
        let state = match agent::CapsuleState::try_from(wire.state) {
            Ok(agent::CapsuleState::Starting) => Live::Starting,
            Ok(agent::CapsuleState::Parked) => Live::Parked,
            // Its processors stand still for a moment.
            Ok(agent::CapsuleState::Running | agent::CapsuleState::Snapshotting) => Live::Running,
            Ok(agent::CapsuleState::Pausing | agent::CapsuleState::Resuming) => Live::Moving,
            Ok(agent::CapsuleState::Paused) => Live::Paused,
            Ok(agent::CapsuleState::Stopping) => Live::Stopping,
            Ok(agent::CapsuleState::Stopped) => Live::Stopped { reason: wire.reason },
            Ok(agent::CapsuleState::Failed) => Live::Failed { reason: wire.reason },
            Ok(agent::CapsuleState::Unspecified) | Err(_) => {
                return Err(ObservedError::State { id, value: wire.state });
            }
        };
        let figures = Figures {
            disk: Disk { size_mb: wire.disk_mb, used_mb: wire.disk_used_mb },
            cpu_us: wire.cpu_us,
            last_active_ms: wire.last_active_at_ms,
        };
        Ok(Self { id, template: wire.template, state, figures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_message_is_read_or_refused_never_a_panic(capsule_id in ".{0,40}", state: i32, reason in ".{0,20}") {
            let wire = agent::Capsule { capsule_id, state, reason, ..Default::default() };
            let _either = Observed::try_from(wire);
        }

        #[test]
        fn an_unknown_state_is_refused(state in prop_oneof![11i32..1000, Just(0), -1000i32..0]) {
            let wire =
                agent::Capsule { capsule_id: CapsuleId::new().to_string(), state, ..Default::default() };
            prop_assert!(Observed::try_from(wire).is_err());
        }
    }
}
