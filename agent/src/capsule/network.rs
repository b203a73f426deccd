//! A capsule's network policy: from the wire, to its slot, and back.

use crate::{
    error::AgentError,
    network::{netns::NetworkError, policy::Policy, slots::Slots},
    vmm::{guard::Vmm, launch::LaunchError},
};
use hearth_proto::wire::agent as wire;
use std::io;

/// What a request asks for, checked; absent: nothing. Refused where this host cannot give it.
pub fn policy(asked: Option<wire::NetworkPolicy>, slots: &Slots) -> Result<Policy, AgentError> {
    let Some(asked) = asked else { return Ok(Policy::default()) };
    let policy = Policy::parse(asked.internet, &asked.allow, &asked.deny)
        .map_err(|error| AgentError::Invalid { field: error.field, reason: error.reason })?;
    match slots.router() {
        Err(_) if asked.best_effort => Ok(Policy::default()),
        Err(reason) if policy.has_egress() => {
            Err(LaunchError::Network(NetworkError::NoEgress(reason.to_owned())).into())
        }
        _ => Ok(policy),
    }
}

/// The wire form.
pub fn wire(policy: &Policy) -> wire::NetworkPolicy {
    wire::NetworkPolicy {
        internet: policy.internet,
        allow: policy.allow.iter().map(ToString::to_string).collect(),
        deny: policy.deny.iter().map(ToString::to_string).collect(),
        best_effort: false,
    }
}

/// Lets a VMM's guest reach what the policy says and nothing else. Where the host has no way out any more, a capsule that
/// had one goes on without.
pub async fn allow(vmm: &Vmm, policy: &Policy) -> Result<(), AgentError> {
    let (netns, wanted) = (vmm.netns.clone(), policy.clone());
    let applied = tokio::task::spawn_blocking(move || netns.apply(&wanted))
        .await
        .map_err(|error| NetworkError::System { what: "the network policy", source: io::Error::other(error) })
        .and_then(|applied| applied);
    match applied {
        Err(error @ NetworkError::NoEgress(_)) => {
            tracing::warn!(%error, "a capsule goes on without its network");
            Ok(())
        }
        other => Ok(other.map_err(LaunchError::Network)?),
    }
}
