//! What a capsule was asked to be. It keeps this for life: over pauses, copies, and agents.

use super::timeouts::Timeouts;
use crate::network::policy::Policy;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fmt};

/// Settings of one capsule. They are written into its records, so a new one needs a default that fits older records.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Environment of what runs in it. Given to the guest again whenever it is activated: a capture clears it there.
    #[serde(default)]
    pub env: HashMap<String, String>,
    /// Least size of its disk in MiB; 0: as what it is restored from.
    #[serde(default)]
    pub disk_mb: u64,
    /// When it pauses or ends by itself.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// What it may reach.
    #[serde(default)]
    pub network: Policy,
}

impl fmt::Debug for Settings {
    /// Without the environment: it may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("network", &self.network).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_from_before_a_setting_was_there_are_read() {
        assert_eq!(serde_json::from_str::<Settings>("{}").unwrap(), Settings::default());
    }
}
