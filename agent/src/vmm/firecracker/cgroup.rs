//! Control groups of Firecrackers: one per VMM below one per agent, made by the jailer, bounded in memory and processes.
//!
//! Only where the host has cgroup v2 with these controllers: under v1 a restore takes far longer (Firecracker's issue
//! 2129), and a container's own root may not divide its controllers.

use crate::vmm::machine::Size;
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

/// Where cgroup v2 is mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Memory of a VMM beside its guest's: Firecracker's own (5 MiB) and the page cache of its disk, which is reclaimed.
const OVERHEAD_MB: u64 = 256;
/// Threads beside the vCPUs'.
const THREADS_MAX: u32 = 32;

/// An agent's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    name: String,
}

/// A VMM's group; removed when dropped, which must be after the VMM's end.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Parent {
    /// Makes the group of the agent with this mark, and lets it divide memory and processes.
    pub fn open(mark: &str) -> io::Result<Self> {
        let name = name(mark);
        let root = Path::new(ROOT);
        let known = fs::read_to_string(root.join("cgroup.controllers"))?;
        if ["memory", "pids"].iter().any(|one| !known.split_ascii_whitespace().any(|word| word == *one)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "no memory and pids controllers"));
        }
        let folder = root.join(&name);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for group in [root, &folder] {
            let divided = fs::write(group.join("cgroup.subtree_control"), "+memory +pids");
            if let Err(error) = divided {
                // It would stay for nothing; the error that is returned says more than one of its removal.
                let _ = fs::remove_dir(&folder);
                return Err(error);
            }
        }
        Ok(Self { name })
    }

    /// The same, or none and a warning that says why.
    pub fn open_or_warn(mark: &str) -> Option<Self> {
        Self::open(mark)
            .inspect_err(|error| {
                tracing::warn!(%error, "VMMs get no control groups: this host has no cgroup v2 to divide");
            })
            .ok()
    }

    /// The group that the VMM `id` of an earlier agent is in.
    pub fn of(&self, id: &str) -> Cgroup {
        Cgroup(Path::new(ROOT).join(&self.name).join(id))
    }

    /// The group that the jailer will make for the VMM `id`, and the jailer's arguments for it.
    pub fn child(&self, id: &str, size: Size) -> (Cgroup, Vec<String>) {
        let args = [
            "--cgroup-version".to_owned(),
            "2".to_owned(),
            "--parent-cgroup".to_owned(),
            self.name.clone(),
            "--cgroup".to_owned(),
            format!("memory.max={}", (size.memory_mb + OVERHEAD_MB) << 20),
            "--cgroup".to_owned(),
            format!("pids.max={}", size.vcpus + THREADS_MAX),
        ];
        (Cgroup(Path::new(ROOT).join(&self.name).join(id)), args.to_vec())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes the group of the agent with this mark and those below it, but for the groups of living VMMs named in
/// `spared`. Called when no other VMM is left.
pub fn sweep(mark: &str, spared: &HashSet<String>) {
    let folder = Path::new(ROOT).join(name(mark));
    if !folder.is_dir() {
        return;
    }
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() && !spared.contains(&*entry.file_name().to_string_lossy()) {
            remove(&entry.path());
        }
    }
    if spared.is_empty() {
        remove(&folder);
    }
}

fn remove(group: &Path) {
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(group = %group.display(), %error, "a control group is left for the next start's sweep");
        }
        Ok(()) | Err(_) => {}
    }
}

/// A mark ends with a dash, a group's name does not.
fn name(mark: &str) -> String {
    mark.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_is_bounded_by_its_size() {
        let parent = Parent { name: name("hearth-ab-") };
        let (group, args) = parent.child("hearth-ab-1-2", Size { vcpus: 2, memory_mb: 512 });
        assert_eq!(group.0, Path::new("/sys/fs/cgroup/hearth-ab/hearth-ab-1-2"));
        let text = args.join(" ");
        assert!(text.contains("--parent-cgroup hearth-ab --cgroup memory.max=805306368"), "{text}");
        assert!(text.ends_with("--cgroup pids.max=34"), "{text}");
    }
}
