//! From a snapshot to a capsule that answers.

use super::{
    network,
    runner::{Life, Wish, step},
    source::Source,
};
use crate::{
    error::AgentError,
    guest::{Guest, Identity},
    template::Templates,
    vmm::guard::Vmm,
};
use std::{sync::Arc, time::Instant};

/// From a snapshot to a capsule that answers: VMM, device state, vCPUs, handshake.
/// Dropping the future half way gives everything back (the VMM is a guard).
pub(crate) async fn restore(
    templates: &Arc<Templates>,
    source: &Source,
    wish: Wish,
) -> Result<Life, AgentError> {
    let _first = templates.parking.restoring();
    let start = Instant::now();
    let mut vmm = source.vmm(templates).await?;
    vmm.assign(wish.id).map_err(|error| AgentError::NoCapacity(format!("the VMM's record: {error}")))?;
    step("vmm", start);
    if let Some(image) = vmm.image().filter(|image| image.is_fresh()) {
        templates.prefetch(source.base(), image.clone());
    }
    let restored = bring_up(&vmm, source, wish, start).await;
    match restored {
        Ok(guest) => Ok(Life { vmm, guest, base: source.base().clone() }),
        // A restore that failed because a process died is told by that death, not by its symptom.
        Err(error) if vmm.is_alive() => Err(error),
        Err(error) => {
            let log = [vmm.log(), vmm.pager_log()].join(" ");
            Err(AgentError::Ended(format!("{error}; the VMM or its pager ended: {}", log.trim())))
        }
    }
}

async fn bring_up(vmm: &Vmm, source: &Source, wish: Wish, start: Instant) -> Result<Guest, AgentError> {
    let load = Instant::now();
    vmm.load(&source.device()).await?;
    step("load", load);
    let resume = Instant::now();
    vmm.resume().await?;
    step("resume", resume);
    // Before anything of the user's runs again.
    network::allow(vmm, &wish.settings.network).await?;
    let handshake = Instant::now();
    let guest = Guest::new(vmm.netns.clone());
    let identity = Identity { hostname: wish.id.to_string(), env: wish.settings.env };
    let reply = guest.activate(identity).await?;
    step("handshake", handshake);
    tracing::debug!(steps = ?reply.step_us, "guest activated");
    if wish.park {
        let rehearse = Instant::now();
        for language in &source.base().snapshot.manifest.languages {
            guest.rehearse(language).await?;
        }
        step("rehearse", rehearse);
        let park = Instant::now();
        vmm.pause().await?;
        step("park", park);
    }
    step(if wish.park { "restore_parked" } else { "restore" }, start);
    Ok(guest)
}
