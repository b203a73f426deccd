//! What is said of a host, by whether its agent is connected and when it was heard of last. Pure.

use std::time::Duration;

/// An agent that restarts is back within seconds, a machine within minutes. After that somebody should look.
pub(crate) const OFFLINE_AFTER: Duration = Duration::from_secs(300);

/// See pool.proto.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostStatus {
    Online,
    /// Its agent does not answer.
    Unreachable,
    /// It has not answered for long.
    Offline,
}

impl HostStatus {
    /// As in the table's column and on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Unreachable => "unreachable",
            Self::Offline => "offline",
        }
    }

    /// Judges a host that was heard of `silent` ago.
    pub(crate) fn judge(connected: bool, silent: Duration) -> Self {
        match (connected, silent >= OFFLINE_AFTER) {
            (true, _) => Self::Online,
            (false, false) => Self::Unreachable,
            (false, true) => Self::Offline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_silent_host_only_gets_worse(first in 0u64..2000, more in 0u64..2000) {
            let (then, later) = (Duration::from_secs(first), Duration::from_secs(first + more));
            prop_assert_eq!(HostStatus::judge(true, later), HostStatus::Online);
            if HostStatus::judge(false, then) == HostStatus::Offline {
                prop_assert_eq!(HostStatus::judge(false, later), HostStatus::Offline);
            }
        }
    }

    #[test]
    fn a_host_is_offline_after_five_minutes() {
        assert_eq!(HostStatus::judge(false, Duration::from_secs(299)), HostStatus::Unreachable);
        assert_eq!(HostStatus::judge(false, OFFLINE_AFTER), HostStatus::Offline);
    }
}
