//! A started VMM as one guard: its processes, its namespace, its folder, its user id, its hold on the memory image.

use super::{
    console,
    control::Control,
    folder::{end_of, last_lines, log_end},
    process::Process,
    uid::UidLease,
};
use crate::{
    capsule::ledger::{self, LifeRecord, Phase, Record},
    memory::{image::Image, stats::Stats},
    network::netns::Netns,
    reaper::{Reaper, Remains},
    usage::probe::Probe,
};
use hearth_proto::id::CapsuleId;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// A VMM and all it is bound to. Dropping it kills it; the reaper does the rest. [`Vmm::let_go`] leaves it running.
#[derive(Debug)]
pub struct Vmm {
    /// Control connection.
    pub(super) control: Control,
    /// Its namespace, where its guest is dialled.
    pub netns: Arc<Netns>,
    /// The VMM's process.
    pub process: Arc<Process>,
    /// Its pager's process; none while a template is built.
    pub pager: Option<Arc<Process>>,
    pub(super) folder: PathBuf,
    pub(super) uid: Option<UidLease>,
    pub(super) image: Option<Arc<Image>>,
    pub(super) record: Mutex<Record>,
    /// It is the next agent's: dropping this value only forgets it.
    pub(super) left: bool,
    pub(super) reaper: Reaper,
}

impl Vmm {
    /// Notes on disk which capsule the VMM runs.
    pub fn assign(&self, capsule: CapsuleId, life: LifeRecord) -> io::Result<()> {
        self.note(|record| {
            record.capsule = Some(capsule);
            record.life = Some(life);
        })
    }

    /// Notes on disk how far its capsule is.
    pub fn enter(&self, phase: Phase) -> io::Result<()> {
        self.note(|record| {
            if let Some(life) = &mut record.life {
                life.phase = phase;
            }
        })
    }

    /// Changes its record on disk. When that fails, the next successful change writes this one too.
    pub fn note(&self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        ledger::write(&self.folder, &record)
    }

    /// Leaves it, with its pager, its network and its files, to the next agent.
    pub fn let_go(mut self) {
        self.netns.let_go();
        self.left = true;
    }

    /// Leaves a record, in a folder of its own below `failed`, that says why its capsule is given up: the next agent
    /// reports it.
    pub fn leave_reason(&self, failed: &Path, reason: String) -> io::Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner).clone();
        record.processes.clear();
        let Some((capsule, life)) = record.capsule.zip(record.life.as_mut()) else { return Ok(()) };
        (life.phase, life.reason) = (Phase::Failed, reason);
        let folder = failed.join(capsule.to_string());
        std::fs::create_dir_all(&folder)?;
        ledger::write(&folder, &record)
    }

    /// What its pager did so far.
    pub fn pager_stats(&self) -> io::Result<Stats> {
        Stats::read(&self.folder.join("pager.stats"))
    }

    /// The memory image that it maps; none while a template is built.
    pub fn image(&self) -> Option<&Arc<Image>> {
        self.image.as_ref()
    }

    /// Path of its writable layer.
    pub fn upper(&self) -> PathBuf {
        self.folder.join("upper.img")
    }

    /// The end of what the pager wrote to its log.
    pub fn pager_log(&self) -> String {
        end_of(&self.folder.join("pager.log"))
    }

    /// The end of what the VMM wrote to its log.
    pub fn log(&self) -> String {
        log_end(&self.folder)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The end of what a restored guest wrote to its console.
    pub fn console_end(&self) -> String {
        last_lines(&console::read(&self.folder.join(console::FILE)).unwrap_or_default())
    }

    /// The end of a build's console.
    pub fn console_log(&self) -> String {
        end_of(&self.folder.join("console.log"))
    }

    /// Whether the kernel ended it because it took more memory than it may.
    pub fn ran_out_of_memory(&self) -> bool {
        self.uid.as_ref().and_then(UidLease::group).is_some_and(crate::cgroup::Group::ran_out_of_memory)
    }

    /// Where its use of the host is read.
    pub fn probe(&self) -> Probe {
        let processes = std::iter::once(&self.process).chain(&self.pager).map(|process| &**process);
        Probe::new(processes, self.upper(), self.folder.join("pager.stats"))
    }

    /// Whether VMM and pager are alive, without waiting.
    pub fn is_alive(&self) -> bool {
        use futures::FutureExt;
        let ended = |process: &Process| process.exited().now_or_never().is_some();
        !ended(&self.process) && !self.pager.as_deref().is_some_and(ended)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if self.left {
            // Its user id and its image stay taken: neither is given to another, nor removed, by this process.
            std::mem::forget((self.uid.take(), self.image.take()));
            return;
        }
        let mut processes = vec![self.process.clone()];
        processes.extend(self.pager.clone());
        // At once, so that a guest does not run on while the reaper is busy; the reaper kills again and reports.
        for process in &processes {
            let _ = process.kill();
        }
        self.reaper.bury(Remains {
            processes,
            folder: std::mem::take(&mut self.folder),
            uid: self.uid.take(),
            image: self.image.take(),
        });
    }
}
