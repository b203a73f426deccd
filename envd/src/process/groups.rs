//! A control group per exec, removed when its last process is gone.

use super::signal;
use crate::cgroup::Cgroup;
use std::{
    fs, io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

const PREFIX: &str = "exec-";

/// Makes the groups `exec-<n>` below one parent and sweeps those that outlived their exec.
#[derive(Debug)]
pub struct Groups {
    parent: Cgroup,
    next: AtomicU64,
    /// Groups with background processes left behind; their number is bounded by the parent's `pids.max`.
    lingering: Mutex<Vec<Cgroup>>,
}

/// The group of one exec. Dropped, it is removed, or left for the sweep while processes are in it.
#[derive(Debug)]
pub struct Group {
    cgroup: Cgroup,
    groups: Arc<Groups>,
}

impl Groups {
    /// Takes over what is below `parent`: an earlier service's empty groups are removed.
    pub fn new(parent: Cgroup) -> io::Result<Self> {
        let (mut last, mut lingering) = (0, Vec::new());
        for entry in fs::read_dir(parent.path())? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok()) else {
                continue;
            };
            last = u64::max(last, number);
            lingering.push(Cgroup::at(entry.path()));
        }
        let groups = Self { parent, next: AtomicU64::new(last + 1), lingering: Mutex::new(lingering) };
        groups.sweep();
        Ok(groups)
    }

    /// Makes the next group.
    pub fn make(self: &Arc<Self>) -> io::Result<Group> {
        self.sweep();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cgroup = self.parent.child(&format!("{PREFIX}{number}"));
        cgroup.make()?;
        Ok(Group { cgroup, groups: Arc::clone(self) })
    }

    fn sweep(&self) {
        let mut lingering = self.lingering.lock().unwrap_or_else(PoisonError::into_inner);
        lingering.retain(|cgroup| matches!(cgroup.remove(), Ok(false)));
    }
}

impl Group {
    /// Its open `cgroup.procs`, for the process that enters it.
    pub fn procs(&self) -> io::Result<OwnedFd> {
        self.cgroup.procs()
    }

    /// Kills everything in it, sessions of their own included.
    pub fn kill(&self) -> io::Result<()> {
        self.cgroup.kill()
    }

    /// Sends a signal to every process in it and below; `signal` is 1 to 64.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if signal == libc::SIGKILL && self.kill().is_ok() {
            return Ok(());
        }
        signal::send(&self.cgroup, signal)
    }

    /// How many of its processes were killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        match self.cgroup.remove() {
            Ok(true) => {}
            Ok(false) => {
                let mut lingering = self.groups.lingering.lock().unwrap_or_else(PoisonError::into_inner);
                lingering.push(self.cgroup.clone());
            }
            Err(error) => tracing::warn!(%error, cgroup = %self.cgroup.path().display(), "not removed"),
        }
    }
}
