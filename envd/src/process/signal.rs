//! Signals to whole trees.

#![expect(unsafe_code, reason = "nix has no names for the real-time signals")]

use crate::cgroup::Cgroup;
use nix::errno::Errno;
use std::{collections::HashSet, fs, io};

/// A tree that forks meanwhile is looked at again, this often at the most.
const ROUNDS_MAX: usize = 8;
/// Groups that a user may have made below it are followed this deep.
const DEPTH_MAX: usize = 8;

/// Sends `signal` once to every process in the group and below.
pub fn send(group: &Cgroup, signal: i32) -> io::Result<()> {
    let mut told = HashSet::new();
    for _ in 0..ROUNDS_MAX {
        let mut all = Vec::new();
        members(group, DEPTH_MAX, &mut all)?;
        let new: Vec<i32> = all.into_iter().filter(|pid| told.insert(*pid)).collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            // SAFETY: kill(2) takes two numbers and touches no memory.
            match Errno::result(unsafe { libc::kill(pid, signal) }) {
                // It ended meanwhile.
                Ok(_) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

fn members(group: &Cgroup, depth: usize, pids: &mut Vec<i32>) -> io::Result<()> {
    // 0 stands for a process outside of our pid namespace, and would be ourselves.
    pids.extend(
        group.read("cgroup.procs")?.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| 0 < *pid),
    );
    if depth == 0 {
        return Ok(());
    }
    for entry in fs::read_dir(group.path())?.flatten().filter(|entry| entry.path().is_dir()) {
        // One that is removed meanwhile is empty.
        let _ = members(&Cgroup::at(entry.path()), depth - 1, pids);
    }
    Ok(())
}
