//! Settings of the network.

use super::{
    dns::Resolvers,
    netns::NetworkError,
    plan,
    router::{self, Router},
    slots::Slots,
};
use std::{collections::HashSet, net::IpAddr, path::Path};

/// What the operator decides about capsules' network.
#[derive(Debug, Clone, clap::Args)]
pub struct NetworkConfig {
    /// Whether capsules can be given a way out: true or false. With false the host's network is left alone.
    #[arg(long, env = "HEARTH_EGRESS", default_value_t = true, action = clap::ArgAction::Set)]
    pub egress: bool,
    /// Network slots that are made ahead: 0 to 256.
    #[arg(long, env = "HEARTH_READY_SLOTS", default_value_t = 8)]
    pub ready_slots: usize,
    /// Resolvers that capsules' questions for names are passed on to, with commas between them; those of
    /// /etc/resolv.conf when there are none.
    #[arg(long, env = "HEARTH_DNS", value_delimiter = ',')]
    pub dns: Vec<IpAddr>,
}

impl NetworkConfig {
    /// What is wrong with it, in words.
    pub fn faults(&self, max_capsules: usize) -> Vec<String> {
        let mut faults = Vec::new();
        if 256 < self.ready_slots {
            faults.push(format!("HEARTH_READY_SLOTS: {} is not from 0 to 256", self.ready_slots));
        }
        if plan::SLOTS_MAX as usize <= max_capsules {
            faults.push(format!("HEARTH_MAX_CAPSULES: {max_capsules} is not below {}", plan::SLOTS_MAX));
        }
        faults
    }

    /// Where questions for names go.
    pub fn resolvers(&self) -> Resolvers {
        if self.dns.is_empty() { Resolvers::Host } else { Resolvers::Fixed(self.dns.clone()) }
    }

    /// Opens the router, where that is wanted and possible, and starts making slots. Blocks for some ten milliseconds.
    /// `keep` are slots of capsules that outlived an earlier agent.
    pub fn start(&self, router: &Path, mark: &str, keep: HashSet<u32>) -> Result<Slots, NetworkError> {
        let opened = if self.egress {
            Router::open(router, mark).map_err(|error| half_way(router, mark, &keep, &error))
        } else {
            Err("HEARTH_EGRESS is false".to_owned())
        };
        let slots = Slots::start(opened, self.ready_slots, keep)
            .map_err(|source| NetworkError::System { what: "the thread that makes slots", source })?;
        match slots.router() {
            Ok(_) => tracing::info!("capsules can be given a way out"),
            Err(reason) if self.egress => {
                tracing::warn!(reason, "capsules have no way out: network `none` only");
            }
            Err(reason) => tracing::info!(reason, "capsules have no way out: network `none` only"),
        }
        metrics::gauge!("hearth_agent_egress").set(if slots.router().is_ok() { 1.0 } else { 0.0 });
        Ok(slots)
    }
}

/// A router that could not be finished is of no use: nothing of it stays on the host.
fn half_way(path: &Path, mark: &str, keep: &HashSet<u32>, error: &NetworkError) -> String {
    if keep.is_empty()
        && let Err(error) = router::sweep(path, mark, keep)
    {
        tracing::warn!(%error, "a router that could not be finished is left for the next start's sweep");
    }
    error.to_string()
}
