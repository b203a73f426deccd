//! Where this host's cgroup controllers are: all in one hierarchy (v2), or in one each (v1), or some of both.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What can be bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// Memory.
    Memory,
    /// Processor time.
    Cpu,
    /// Processes and threads.
    Pids,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    /// The kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

/// A mounted hierarchy and which of our controllers are in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its mount point.
    pub root: PathBuf,
    /// cgroup v2.
    pub is_unified: bool,
    /// At least one.
    pub controllers: Vec<Controller>,
}

/// The hierarchies of this host.
pub fn all() -> io::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(find(&mounts, |root| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()))
}

/// (pure) The same, from the list of mounts (proc_pid_mounts(5)) and what v2's root says that it has.
fn find(mounts: &str, controllers: impl Fn(&Path) -> String) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(root), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let root = PathBuf::from(root);
        let (is_unified, words) = match kind {
            "cgroup2" => (true, controllers(&root)),
            "cgroup" => (false, options.replace(',', " ")),
            _ => continue,
        };
        let is_new = |controller: &Controller| {
            !found.iter().any(|hierarchy| hierarchy.controllers.contains(controller))
        };
        let there =
            |controller: &Controller| words.split_ascii_whitespace().any(|word| word == controller.name());
        let controllers: Vec<Controller> = Controller::ALL.into_iter().filter(there).filter(is_new).collect();
        if !controllers.is_empty() {
            found.push(Hierarchy { root, is_unified, controllers });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_is_found_once_wherever_it_is() {
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\ntmpfs /run tmpfs rw 0 0\n";
        let all = find(v2, |_| "cpuset cpu io memory hugetlb pids\n".to_owned());
        assert_eq!(all.len(), 1);
        assert!(all[0].is_unified && all[0].controllers == Controller::ALL, "{all:?}");
        let mixed = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                     cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                     cgroup /other/memory cgroup rw,memory 0 0\n\
                     cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n\
                     cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let all = find(mixed, |_| "pids\n".to_owned());
        let places: Vec<(&str, bool, &[Controller])> = all
            .iter()
            .map(|one| (one.root.to_str().unwrap(), one.is_unified, one.controllers.as_slice()))
            .collect();
        assert_eq!(
            places,
            [
                ("/sys/fs/cgroup/cpu,cpuacct", false, [Controller::Cpu].as_slice()),
                ("/sys/fs/cgroup/memory", false, [Controller::Memory].as_slice()),
                ("/sys/fs/cgroup/unified", true, [Controller::Pids].as_slice()),
            ]
        );
        assert_eq!(find("x\n\ncgroup2 /c cgroup2 rw\n", |_| String::new()), []);
    }
}
