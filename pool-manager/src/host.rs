//! The host that runs capsules: its agent's calls, what its agent says, and the capsules this process answers for.
//!
//! There is one host now. What concerns a host hangs on [`Host`], and every [`held::Held`] capsule carries its host, so
//! that more hosts mean more values, not another shape.

pub(crate) mod client;
pub(crate) mod compare;
pub(crate) mod held;
pub(crate) mod observed;
pub(crate) mod reaper;
pub(crate) mod restore;
pub(crate) mod stranger;
pub(crate) mod watch;

use client::Agent;
use std::sync::Arc;
use tokio::sync::watch as level;

/// One host: how to reach it and whether it answers. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) agent: Agent,
    /// `unix:/path`, as the gateway may use it too.
    pub(crate) endpoint: Arc<str>,
    pub(crate) link: level::Receiver<Link>,
}

impl Host {
    /// The host's id, while its agent is connected.
    pub(crate) fn id(&self) -> Option<Arc<str>> {
        match &*self.link.borrow() {
            Link::Away { .. } => None,
            Link::Up { host_id } => Some(Arc::clone(host_id)),
        }
    }
}

/// Whether a host's agent can be asked for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Link {
    /// Not connected, and why.
    Away { reason: String },
    /// Connected, and its capsules have been compared with ours.
    Up { host_id: Arc<str> },
}

impl Link {
    pub(crate) fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

/// What an agent says about its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFacts {
    pub(crate) id: String,
    pub(crate) engine: String,
    pub(crate) accelerator: String,
    pub(crate) cpus: u32,
    pub(crate) memory_mb: u64,
}
