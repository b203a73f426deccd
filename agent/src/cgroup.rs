//! Control groups of VMMs: one per VMM below one per agent, bounded in memory, processor time and threads.
//!
//! A group has the name of its VMM, at a place that follows from the data folder's mark alone, so that a sweep, or an
//! agent that takes a VMM over, finds it without a record. With cgroup v1 it is a folder in each controller's
//! hierarchy. Pagers stay outside: what they fill is every capsule's.

pub mod hierarchy;
pub mod limits;

use crate::vmm::machine::Size;
use hierarchy::Hierarchy;
use limits::Limits;
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

/// The groups of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    name: String,
    hierarchies: Vec<Hierarchy>,
}

/// A VMM's group; removed when dropped, which must be after the VMM's end.
#[derive(Debug)]
pub struct Group {
    folders: Vec<PathBuf>,
}

/// The way into a group. Holding it does not keep the group.
#[derive(Debug, Clone)]
pub struct Entry {
    folders: Vec<PathBuf>,
}

impl Groups {
    /// Makes the group of the agent with this mark wherever this host lets it divide memory, processor time or
    /// threads. An error when that is nowhere.
    pub fn open(mark: &str) -> io::Result<Self> {
        let name = name(mark);
        let mut reasons = Vec::new();
        let mut hierarchies = Vec::new();
        for hierarchy in hierarchy::all()? {
            match prepare(&hierarchy, &name) {
                Ok(()) => hierarchies.push(hierarchy),
                Err(error) => {
                    // It would stay for nothing; the reason says more than an error of its removal.
                    let _ = fs::remove_dir(hierarchy.root.join(&name));
                    reasons.push(format!("{}: {error}", hierarchy.root.display()));
                }
            }
        }
        if hierarchies.is_empty() {
            reasons.push("no hierarchy with the controllers memory, cpu or pids can be divided".to_owned());
            return Err(io::Error::new(io::ErrorKind::Unsupported, reasons.join("; ")));
        }
        Ok(Self { name, hierarchies })
    }

    /// The same, or none and a warning that says why.
    pub fn open_or_warn(mark: &str) -> Option<Self> {
        match Self::open(mark) {
            Ok(groups) => {
                tracing::info!(controllers = groups.controllers(), "VMMs get control groups");
                Some(groups)
            }
            Err(error) => {
                tracing::warn!(%error, "VMMs get no control groups: this host has none to divide");
                None
            }
        }
    }

    /// What is bounded, in words: `memory (v2), cpu (v2), pids (v2)`.
    pub fn controllers(&self) -> String {
        let words = self.hierarchies.iter().flat_map(|hierarchy| {
            let version = if hierarchy.is_unified { "v2" } else { "v1" };
            hierarchy.controllers.iter().map(move |controller| format!("{} ({version})", controller.name()))
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// Makes the group of a VMM that is about to be started.
    pub fn make(&self, vmm: &str, size: Size) -> io::Result<Group> {
        let limits = Limits::of(size);
        let mut group = Group { folders: Vec::new() };
        for hierarchy in &self.hierarchies {
            let folder = hierarchy.root.join(&self.name).join(vmm);
            fs::create_dir(&folder)?;
            group.folders.push(folder.clone());
            for (file, value) in limits.files(hierarchy) {
                fs::write(folder.join(file), value)
                    .map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))?;
            }
        }
        Ok(group)
    }

    /// The group of a VMM that runs, for an agent that takes it over. None when it has none.
    pub fn find(&self, vmm: &str) -> Option<Group> {
        let folders = self.hierarchies.iter().map(|hierarchy| hierarchy.root.join(&self.name).join(vmm));
        let folders: Vec<PathBuf> = folders.filter(|folder| folder.is_dir()).collect();
        (!folders.is_empty()).then_some(Group { folders })
    }
}

impl Entry {
    /// Moves a process with all its threads into it. One that has ended meanwhile is no error. Blocks: with cgroup v1
    /// for some milliseconds.
    ///
    /// What it had in memory before stays charged to where it came from, so this belongs right after the spawn; a VMM
    /// runs no guest before it is told to.
    pub fn enter(&self, pid: i32) -> io::Result<()> {
        for folder in &self.folders {
            match fs::write(folder.join("cgroup.procs"), pid.to_string()) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

impl Group {
    /// The way into it.
    pub fn entry(&self) -> Entry {
        Entry { folders: self.folders.clone() }
    }

    /// Whether the kernel ended a process of it because the group's memory was used up.
    pub fn ran_out_of_memory(&self) -> bool {
        // v2 and v1; both have a line `oom_kill N`.
        let files = ["memory.events", "memory.oom_control"];
        self.folders.iter().flat_map(|folder| files.map(|file| folder.join(file))).any(|file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            kills.and_then(|number| number.trim().parse::<u64>().ok()).is_some_and(|kills| 0 < kills)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
            remove(folder);
        }
    }
}

/// Makes the agent's group and lets it and the root divide their controllers.
fn prepare(hierarchy: &Hierarchy, name: &str) -> io::Result<()> {
    let folder = hierarchy.root.join(name);
    match fs::create_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if hierarchy.is_unified {
        let words: Vec<String> =
            hierarchy.controllers.iter().map(|controller| format!("+{}", controller.name())).collect();
        for group in [&hierarchy.root, &folder] {
            fs::write(group.join("cgroup.subtree_control"), words.join(" "))?;
        }
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    for (file, value) in limits::parent_files(hierarchy, cpus) {
        fs::write(folder.join(file), value)?;
    }
    Ok(())
}

/// Groups that there are of the agent with this mark, each VMM's before the agent's own.
pub fn left(mark: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchy::all().unwrap_or_default() {
        let folder = hierarchy.root.join(name(mark));
        if !folder.is_dir() {
            continue;
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
        found.push(folder);
    }
    found
}

/// Processes in the groups of the agent with this mark.
pub fn members(mark: &str) -> Vec<i32> {
    let lists =
        left(mark).into_iter().filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok());
    let mut pids: Vec<i32> = lists
        .flat_map(|list| list.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Removes the groups of the agent with this mark, but for the groups of living VMMs named in `spared`. Called when no
/// other VMM is left.
pub fn sweep(mark: &str, spared: &HashSet<String>) {
    let agent = name(mark);
    for group in left(mark) {
        let name = group.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let is_in_use = if name == agent { !spared.is_empty() } else { spared.contains(&name) };
        if !is_in_use {
            remove(&group);
        }
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
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    #[test]
    fn a_process_that_takes_too_much_memory_is_ended_and_its_group_tells() {
        let mark = format!("hearth-oom{}-", std::process::id());
        let memory = Groups::open(&mark).ok().filter(|groups| groups.controllers().contains("memory"));
        let Some(groups) = memory else {
            assert!(hearth_test_skip::lacks("cgroup-memory", "root and the memory controller"));
            return;
        };
        let group = groups.make(&format!("{mark}1-1"), Size { vcpus: 1, memory_mb: 0 }).unwrap();
        // `tail` keeps the whole line that never ends.
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read go; exec tail /dev/zero"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        group.entry().enter(child.id() as i32).unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL), "{status}");
        assert!(group.ran_out_of_memory());
        drop(group);
        sweep(&mark, &HashSet::new());
        assert_eq!(left(&mark), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_process_is_bounded_in_its_group_and_a_sweep_finds_both() {
        let mark = format!("hearth-test{}-", std::process::id());
        let groups = match Groups::open(&mark) {
            Ok(groups) => groups,
            Err(error) => {
                assert!(hearth_test_skip::lacks("cgroup", &format!("root and control groups: {error}")));
                return;
            }
        };
        let vmm = format!("{mark}1-1");
        let group = groups.make(&vmm, Size { vcpus: 1, memory_mb: 512 }).unwrap();
        assert!(groups.make(&vmm, Size { vcpus: 1, memory_mb: 512 }).is_err(), "a name is used once");
        let mut child = Command::new("/usr/bin/sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        group.entry().enter(pid).unwrap();
        assert_eq!(members(&mark), [pid]);
        assert!(!group.ran_out_of_memory());
        let found = groups.find(&vmm).unwrap();
        assert_eq!(found.folders, group.folders);
        std::mem::forget(found);
        child.kill().unwrap();
        child.wait().unwrap();
        group.entry().enter(pid).unwrap();
        assert!(left(&mark).len() > groups.hierarchies.len());
        drop(group);
        assert!(groups.find(&vmm).is_none(), "removed with its guard");
        sweep(&mark, &HashSet::new());
        assert_eq!(left(&mark), Vec::<PathBuf>::new());
    }
}
