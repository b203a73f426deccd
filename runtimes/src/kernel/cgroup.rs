//! A kernel's cgroup (v2): limits, one kill for all its processes, and the count of OOM kills.

use crate::config::Limits;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

/// One cgroup. Dropping it kills what is inside and removes it if it is empty by then; what is left, the
/// next one of the same context removes.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    /// `memory.events`, and the OOM kills it told of when it was last read. None without the memory controller.
    events: Option<(File, u64)>,
}

impl Cgroup {
    /// Makes `parent/ctx-<name>` with the limits.
    pub(super) fn new(parent: &Path, name: &str, limits: &Limits) -> io::Result<Self> {
        sweep(parent);
        // Needed once; fails harmlessly where the parent has it or may not give it.
        for controller in ["+memory", "+pids"] {
            if let Err(error) = fs::write(parent.join("cgroup.subtree_control"), controller) {
                tracing::debug!(%error, controller, "controller not available to kernels");
            }
        }
        let path = parent.join(format!("ctx-{name}"));
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let events = File::open(path.join("memory.events")).ok().map(|file| (file, 0));
        let mut cgroup = Self { path, events };
        if let Some(bytes) = limits.memory_bytes {
            cgroup.set("memory.max", &bytes.to_string());
            cgroup.set("memory.swap.max", "0");
        }
        if let Some(count) = limits.processes {
            cgroup.set("pids.max", &count.to_string());
        }
        cgroup.oom_kills();
        Ok(cgroup)
    }

    fn set(&self, name: &str, value: &str) {
        if let Err(error) = fs::write(self.path.join(name), value) {
            tracing::warn!(%error, name, value, "limit of a kernel's cgroup not set");
        }
    }

    /// The file into which a process writes `0` to move in.
    pub(super) fn procs(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))
    }

    /// Kills everything inside.
    pub(super) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// Processes killed by the memory limit so far.
    pub(super) fn oom_kills(&mut self) -> Option<u64> {
        let (file, known) = self.events.as_mut()?;
        let mut text = [0; 1024];
        let count = file.read_at(&mut text, 0).ok()?;
        *known = parse_oom_kills(std::str::from_utf8(&text[..count]).ok()?)?;
        Some(*known)
    }

    /// The same, for the time before a run: the file is read only when the kernel says that it has changed since
    /// (cgroups(7), "modified notification"), since reading it costs more than all else before a short run.
    pub(super) fn oom_kills_before(&mut self) -> Option<u64> {
        let (file, known) = self.events.as_ref()?;
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], PollTimeout::ZERO) {
            Ok(0) => Some(*known),
            Ok(_) | Err(_) => self.oom_kills(),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::debug!(%error, path = %self.path.display(), "cgroup not killed");
        }
        if fs::remove_dir(&self.path).is_err() {
            tracing::debug!(path = %self.path.display(), "cgroup still busy, left for the next sweep");
        }
    }
}

/// Removes cgroups of earlier kernels whose processes have ended; a populated one cannot be removed.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("ctx-") {
            let _busy = fs::remove_dir(entry.path());
        }
    }
}

fn parse_oom_kills(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_of_oom_kills_is_read() {
        let events = "low 0\nhigh 0\nmax 14\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(parse_oom_kills(events), Some(1));
        assert_eq!(parse_oom_kills("oom 2\n"), None);
    }
}
