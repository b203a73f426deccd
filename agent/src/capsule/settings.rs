//! What a capsule was asked to be. It keeps this for life: over pauses, copies, and agents.

use crate::network::policy::Policy;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fmt};

/// Settings of one capsule. They are written into its records, so a new one needs a default that fits older records.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Environment of what runs in it. Given to the guest again whenever it is activated: a capture clears it there.
    #[serde(default)]
    pub env: HashMap<String, String>,
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
