//! A host that runs capsules: its agent's calls, what its agent says, and the capsules on it that this process answers
//! for. What this process keeps for each host is a [`crate::site::Site`].

pub(crate) mod client;
pub(crate) mod compare;
pub(crate) mod held;
pub(crate) mod homes;
pub(crate) mod lifecycle;
pub(crate) mod observed;
pub(crate) mod reaper;
pub(crate) mod restore;
pub(crate) mod status;
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
    /// The host, while its agent is connected.
    pub(crate) fn up(&self) -> Option<Arc<HostFacts>> {
        match &*self.link.borrow() {
            Link::Away { .. } => None,
            Link::Up { facts } => Some(Arc::clone(facts)),
        }
    }

    /// What was heard of the host last; none before the first time.
    pub(crate) fn last_known(&self) -> Option<Arc<HostFacts>> {
        match &*self.link.borrow() {
            Link::Away { last, .. } => last.clone(),
            Link::Up { facts } => Some(Arc::clone(facts)),
        }
    }
}

/// Whether a host's agent can be asked for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Link {
    /// Not connected, and why; with what the host was when it was connected last.
    Away { reason: String, last: Option<Arc<HostFacts>> },
    /// Connected, and its capsules have been compared with ours.
    Up { facts: Arc<HostFacts> },
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
