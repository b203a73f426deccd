//! A starting agent takes over what an earlier one left: living capsules go on, dead ones are told of, the rest is swept.
//!
//! ```text
//!  lock ▸ survey (ledger × /proc) ▸ plan ▸ sweep what nobody wants ▸ take over ▸ images nobody maps go ▸ serve
//! ```

pub mod lock;
pub mod plan;
pub mod survey;

use crate::{
    agent::Parts,
    capsule::{
        console,
        handle::Handle,
        ledger::{LifeRecord, Phase},
        runner::Life,
        survivor,
    },
    config::Layout,
    guest::Guest,
    reaper::sweep::Spared,
    vmm::adopt::{Abandoned, TakenOver},
};
use futures::StreamExt;
use hearth_proto::id::CapsuleId;
use plan::{Found, Verdict};
use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use survey::Survivor;

/// VMMs that are taken over at once: each takes some milliseconds, one that does not answer ten seconds.
const AT_ONCE: usize = 16;

/// What is to be done with what was found.
#[derive(Debug, Default)]
pub struct Inheritance {
    adopt: Vec<Survivor>,
    failed: Vec<(CapsuleId, LifeRecord, String)>,
    /// Folders of those that failed.
    consoles: Vec<(CapsuleId, PathBuf)>,
    /// Paused capsules that run again.
    pub outdated: Vec<CapsuleId>,
}

/// Looks and decides. `paused` names the generation of each paused capsule.
pub fn look(layout: &Layout, paused: &HashMap<CapsuleId, String>) -> io::Result<Inheritance> {
    let mut survivors = survey::survey(&layout.vmms())?;
    survivors.extend(survey::survey(&layout.failed())?);
    let found: Vec<Found> = survivors.iter().map(|survivor| survivor.found.clone()).collect();
    let plan = plan::plan(&found, paused);
    let mut inheritance = Inheritance { outdated: plan.outdated, ..Inheritance::default() };
    for (survivor, verdict) in survivors.into_iter().zip(plan.verdicts) {
        let record = &survivor.found.record;
        match verdict {
            Verdict::Adopt => inheritance.adopt.push(survivor),
            Verdict::Failed(reason) => {
                if let Some((id, life)) = record.capsule.zip(record.life.clone()) {
                    inheritance.consoles.push((id, survivor.folder.clone()));
                    inheritance.failed.push((id, life, reason));
                }
            }
            Verdict::Sweep(why) => {
                tracing::debug!(vmm = %survivor.folder.display(), capsule = ?record.capsule, why, "a VMM is swept");
                adopted("swept");
            }
        }
    }
    Ok(inheritance)
}

fn adopted(outcome: &'static str) {
    metrics::counter!("hearth_agent_adopted_total", "outcome" => outcome).increment(1);
}

impl Inheritance {
    /// What a sweep must leave alone.
    pub fn spared(&self) -> Spared {
        let pids =
            self.adopt.iter().flat_map(|survivor| survivor.processes.iter().map(|process| process.pid()));
        Spared {
            folders: self.adopt.iter().map(|survivor| survivor.folder.clone()).collect(),
            pids: pids.collect(),
            slots: self.slots(),
        }
    }

    /// Keeps what the guests of those that failed wrote to their consoles, before their folders are swept.
    pub fn rescue_consoles(&self, folder: &Path) {
        for (id, vmm) in &self.consoles {
            if let Err(error) = console::rescue(folder, *id, vmm) {
                tracing::warn!(capsule.id = %id, %error, "the console of a failed capsule is lost");
            }
        }
    }

    /// Network slots of those that go on.
    pub fn slots(&self) -> HashSet<u32> {
        self.adopt.iter().filter_map(|survivor| survivor.found.record.slot).collect()
    }

    /// How many go on.
    pub fn living(&self) -> usize {
        self.adopt.len()
    }

    /// Takes over the living and tells of the dead; afterwards all of them are in the registry.
    pub async fn take_over(self, parts: &Arc<Parts>) {
        let Self { adopt, failed, .. } = self;
        let mut handles: Vec<Handle> = Vec::new();
        for (id, life, reason) in failed {
            adopted("failed");
            handles.push(survivor::failed(parts, life.facts(id), reason));
        }
        let taken = adopt.into_iter().map(|survivor| take_over(parts, survivor));
        let taken: Vec<Option<Handle>> =
            futures::stream::iter(taken).buffer_unordered(AT_ONCE).collect().await;
        let living = taken.iter().flatten().filter(|handle| handle.state().is_living()).count();
        if !taken.is_empty() || !handles.is_empty() {
            tracing::info!(
                adopted = living,
                failed = handles.len() + taken.len() - living,
                "capsules of an earlier agent"
            );
        }
        for handle in handles.into_iter().chain(taken.into_iter().flatten()) {
            if !parts.registry.adopt(handle.clone()) {
                tracing::error!(capsule.id = %handle.facts.id, "a capsule is there twice");
            }
            parts.registry.changed(&handle);
        }
    }
}

/// Takes one over, or ends it and says why.
async fn take_over(parts: &Arc<Parts>, survivor: Survivor) -> Option<Handle> {
    let record = survivor.found.record.clone();
    let (id, life) = record.capsule.zip(record.life.clone())?;
    let processes = survivor.processes.clone();
    let folder = survivor.folder.clone();
    match connect(parts, survivor, &life).await {
        Ok((living, running)) => {
            adopted(if life.phase == Phase::Parked && !running { "parked" } else { "running" });
            Some(survivor::take_over(parts, id, life, living, running))
        }
        Err(reason) => {
            adopted("failed");
            let image = None;
            // Its user id was given back by the failed attempt, and is free when this returns.
            let remains = crate::reaper::Remains { processes, folder, uid: None, image };
            crate::reaper::bury(remains).await;
            let reason = format!("it could not be taken over: {reason}");
            Some(survivor::failed(parts, life.facts(id), reason))
        }
    }
}

async fn connect(parts: &Arc<Parts>, survivor: Survivor, life: &LifeRecord) -> Result<(Life, bool), String> {
    let Survivor { folder, found, processes } = survivor;
    let record = found.record;
    use hearth_service::telemetry::chain;
    let (templates, parent) = (parts.templates.clone(), life.base.clone());
    let base = tokio::task::spawn_blocking(move || templates.base_of_living(&parent)).await;
    let base = base.map_err(|error| error.to_string())?.map_err(|error| chain(&error))?;
    let image = record.image.as_deref().ok_or("its record names no memory image")?;
    let ram_bytes = base.snapshot.manifest.size.ram_bytes();
    let image = parts.images.take_back(&life.base.key, image, ram_bytes).map_err(|error| chain(&error))?;
    let abandoned = Abandoned { folder, record, processes, image: Some(image) };
    let taken = parts.templates.launcher.take_over(abandoned).await.map_err(|error| chain(&error))?;
    let TakenOver { vmm, running } = taken;
    match Guest::new(vmm.netns.clone(), &life.token) {
        Ok(guest) => Ok((Life { vmm, guest, base }, running)),
        Err(error) => Err(chain(&error)),
    }
}
