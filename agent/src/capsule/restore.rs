//! From a snapshot to a capsule that answers.

use super::{
    disk,
    handle::Facts,
    ledger::{LifeRecord, Phase},
    network,
    runner::{Life, Wish},
    source::Source,
};
use crate::{
    error::AgentError,
    guest::{Guest, Identity},
    snapshot::manifest::Parent,
    steps,
    template::Templates,
    vmm::guard::Vmm,
};
use std::{sync::Arc, time::Instant};

/// From a snapshot to a capsule that answers: VMM, device state, vCPUs, handshake.
/// Dropping the future half way gives everything back (the VMM is a guard).
///
/// A capsule of which others will be told has `facts`. Everything that a later agent needs to take it over is on disk
/// before this returns; without facts, and while it is being restored, a later agent ends it.
pub(crate) async fn restore(
    templates: &Arc<Templates>,
    source: &Source,
    wish: Wish,
    facts: Option<&Facts>,
) -> Result<Life, AgentError> {
    let _first = templates.parking.restoring();
    let start = Instant::now();
    let step = |name, start| steps::step_from(name, from(source, &wish), start);
    let vmm = source.vmm(templates).await?;
    let token = Guest::new_token()?;
    let noted = |error| AgentError::NoCapacity(format!("the VMM's record: {error}"));
    if let Some(facts) = facts {
        vmm.assign(facts.id, life_record(source, facts, &wish, &token)).map_err(noted)?;
    }
    let phase = if wish.park { Phase::Parked } else { Phase::Running };
    step("vmm", start);
    let fresh = vmm.image().filter(|image| image.is_fresh()).cloned();
    if let Some(image) = &fresh {
        templates.prefetch(source.base(), image.clone());
    }
    let guest = Guest::new(vmm.netns.clone(), &token)?;
    let restored = bring_up(&vmm, &guest, source, wish, start).await;
    match restored {
        Ok(()) => {
            vmm.enter(phase).map_err(noted)?;
            if let Some(image) = fresh {
                templates.judge(source.base(), image);
            }
            Ok(Life { vmm, guest, base: source.base().clone() })
        }
        // A restore that failed because a process died is told by that death, not by its symptom.
        Err(error) if vmm.is_alive() => Err(error),
        Err(error) => {
            let log = [vmm.log(), vmm.pager_log()].join(" ");
            Err(AgentError::Ended(format!("{error}; the VMM or its pager ended: {}", log.trim())))
        }
    }
}

fn life_record(source: &Source, facts: &Facts, wish: &Wish, token: &str) -> LifeRecord {
    let base = &source.base().snapshot.manifest;
    LifeRecord {
        phase: Phase::Starting,
        reason: String::new(),
        token: token.to_owned(),
        template: facts.template.clone(),
        vcpus: facts.vcpus,
        memory_mb: facts.memory_mb,
        created_at_ms: facts.created_at_ms,
        base: Parent { key: base.key.clone(), memory_xxh3: base.memory_xxh3 },
        settings: wish.settings.clone(),
    }
}

/// What a restore is of, for the metrics of its steps.
fn from(source: &Source, wish: &Wish) -> &'static str {
    match source {
        Source::Generation(_) => "generation",
        Source::Template(_) if wish.park => "pool",
        Source::Template(_) => "template",
    }
}

async fn bring_up(
    vmm: &Vmm,
    guest: &Guest,
    source: &Source,
    wish: Wish,
    start: Instant,
) -> Result<(), AgentError> {
    let from = from(source, &wish);
    let step = |name, start| steps::step_from(name, from, start);
    let load = Instant::now();
    vmm.load(&source.device()).await?;
    step("load", load);
    let resume = Instant::now();
    vmm.resume().await?;
    step("resume", resume);
    // Before anything of the user's runs again.
    network::allow(vmm, &wish.settings.network).await?;
    let handshake = Instant::now();
    let identity = Identity { hostname: wish.id.to_string(), env: wish.settings.env };
    let reply = guest.activate(identity).await?;
    step("handshake", handshake);
    tracing::debug!(steps = ?reply.step_us, "guest activated");
    disk::ensure(vmm, guest, wish.settings.disk_mb).await?;
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
    Ok(())
}
