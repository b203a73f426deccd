//! What a user can choose for a capsule. Pure: checked when it is built.

use crate::error::Refused;
use hearth_proto::wire::agent;
use serde::{Deserialize, Serialize};

/// Most public ports of one capsule.
pub(crate) const PUBLIC_PORTS_MAX: usize = 64;

/// What a user chose for a capsule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) timeouts: Timeouts,
    /// Any use brings it back from a pause.
    pub(crate) auto_resume: bool,
    /// Open to callers without a key.
    pub(crate) public_ports: Vec<u16>,
    /// None: nothing.
    pub(crate) network: Option<Network>,
}

/// When a capsule that nobody uses goes, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// Zero: never.
    pub(crate) idle_sec: u64,
    pub(crate) action: TimeoutAction,
}

impl Timeouts {
    /// For the agent.
    pub(crate) fn idle_ms(self) -> u64 {
        self.idle_sec.saturating_mul(1000)
    }
}

/// What happens when a timeout is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum TimeoutAction {
    #[default]
    Pause,
    Destroy,
}

impl TimeoutAction {
    /// As in the table's column.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Destroy => "destroy",
        }
    }

    /// From the wire; absent is a pause.
    pub(crate) fn from_wire(value: i32) -> Result<Self, Refused> {
        match agent::TimeoutAction::try_from(value) {
            Ok(agent::TimeoutAction::Unspecified | agent::TimeoutAction::Pause) => Ok(Self::Pause),
            Ok(agent::TimeoutAction::Destroy) => Ok(Self::Destroy),
            Err(_) => Err(Refused::Invalid(format!("timeout_action: unknown value {value}"))),
        }
    }

    /// For the wire.
    pub(crate) fn wire(self) -> agent::TimeoutAction {
        match self {
            Self::Pause => agent::TimeoutAction::Pause,
            Self::Destroy => agent::TimeoutAction::Destroy,
        }
    }
}

/// What a capsule may reach. Its host checks it: what an address range means is its matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) internet: bool,
    pub(crate) allow: Vec<String>,
    pub(crate) deny: Vec<String>,
    pub(crate) best_effort: bool,
}

impl From<agent::NetworkPolicy> for Network {
    fn from(wire: agent::NetworkPolicy) -> Self {
        Self { internet: wire.internet, allow: wire.allow, deny: wire.deny, best_effort: wire.best_effort }
    }
}

impl From<Network> for agent::NetworkPolicy {
    fn from(network: Network) -> Self {
        Self {
            internet: network.internet,
            allow: network.allow,
            deny: network.deny,
            best_effort: network.best_effort,
        }
    }
}

/// Checks a list of public ports; sorted, each once.
pub(crate) fn public_ports(ports: &[u32]) -> Result<Vec<u16>, Refused> {
    if ports.len() > PUBLIC_PORTS_MAX {
        return Err(Refused::Invalid(format!(
            "public_ports: at most {PUBLIC_PORTS_MAX}, not {}",
            ports.len()
        )));
    }
    let mut checked =
        ports.iter().map(|port| self::port("public_ports", *port)).collect::<Result<Vec<_>, _>>()?;
    checked.sort_unstable();
    checked.dedup();
    Ok(checked)
}

/// Checks one port.
pub(crate) fn port(field: &str, port: u32) -> Result<u16, Refused> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Refused::Invalid(format!("{field}: a port is 1 to 65535, not {port}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ports_are_checked_sorted_and_unique(ports in prop::collection::vec(0u32..70_000, 0..80)) {
            let valid = ports.len() <= PUBLIC_PORTS_MAX && ports.iter().all(|port| (1..=65_535).contains(port));
            let checked = public_ports(&ports);
            prop_assert_eq!(checked.is_ok(), valid);
            if let Ok(checked) = checked {
                prop_assert!(checked.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(ports.iter().all(|port| checked.contains(&u16::try_from(*port).unwrap())));
            }
        }
    }

    #[test]
    fn an_unknown_action_is_refused() {
        assert_eq!(TimeoutAction::from_wire(0), Ok(TimeoutAction::Pause));
        assert_eq!(TimeoutAction::from_wire(2), Ok(TimeoutAction::Destroy));
        assert!(TimeoutAction::from_wire(3).is_err());
    }
}
