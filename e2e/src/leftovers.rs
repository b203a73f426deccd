//! What a stopped Hearth must not leave on the host.

use hearth_agent::usage::kib_of;
use std::{fs, path::Path};

/// Processes of the data folder `dir`, with their command lines: by the mark of its VMMs, or by its path.
fn processes(dir: &Path) -> Vec<(String, String)> {
    let folder = dir.to_string_lossy().into_owned();
    let mark = hearth_agent::config::Layout::new(dir, dir).mark();
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid != own && (command.contains(&mark) || command.contains(&folder)) {
            found.push((pid, command));
        }
    }
    found
}

/// Process ids of the data folder's QEMU processes.
pub fn vmms(dir: &Path) -> Vec<i32> {
    let is_vmm =
        |command: &str| command.split(' ').next().is_some_and(|program| program.contains("qemu-system"));
    let vmms = processes(dir).into_iter().filter(|(_, command)| is_vmm(command));
    vmms.filter_map(|(pid, _)| pid.parse().ok()).collect()
}

/// Process ids of the data folder's pagers.
pub fn pagers(dir: &Path) -> Vec<i32> {
    let pagers = processes(dir).into_iter().filter(|(_, command)| command.contains(" pager --layer "));
    pagers.filter_map(|(pid, _)| pid.parse().ok()).collect()
}

/// What the capsules of a data folder cost the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// VMMs, pagers, and the database's processes that name the folder.
    pub processes: usize,
    /// Memory that is theirs alone, in MiB.
    pub private_mb: u64,
}

impl Footprint {
    /// Of the data folder `dir`, now.
    pub fn of(dir: &Path) -> Self {
        let processes = processes(dir);
        let private_kb = |pid: &str| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            kib_of(&status, "RssAnon").unwrap_or(0)
        };
        let sum: u64 = processes.iter().map(|(pid, _)| private_kb(pid)).sum();
        Self { processes: processes.len(), private_mb: sum >> 10 }
    }
}

/// Processes, mounts and files that belong to the data folder `dir`, in words. Empty when nothing is left.
pub fn of(dir: &Path) -> Vec<String> {
    let folder = dir.to_string_lossy().into_owned();
    let mut found: Vec<String> =
        processes(dir).into_iter().map(|(pid, command)| format!("process {pid}: {command}")).collect();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(&folder)).map(|line| format!("mount {line}")));
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if backing.starts_with(&folder) {
            found.push(format!("loop device {}: {backing}", device.path().display()));
        }
    }
    let layout = hearth_agent::config::Layout::new(dir, dir);
    found.extend(hearth_agent::network::router::remains(&layout.router(), &layout.mark()));
    let groups = hearth_agent::cgroup::left(&layout.mark());
    found.extend(groups.into_iter().map(|group| format!("control group {}", group.display())));
    for path in ["agent/vmms", "agent/images", "agent/store"] {
        for entry in fs::read_dir(dir.join(path)).into_iter().flatten().flatten() {
            found.push(format!("file {}", entry.path().display()));
        }
    }
    found
}

/// Zombie children of this process and of `pid`.
pub fn zombies(pid: i32) -> usize {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| {
            let fields = stat.rfind(')').map_or("", |at| &stat[at + 1..]);
            let mut fields = fields.split_ascii_whitespace();
            fields.next() == Some("Z") && fields.next() == Some(pid.to_string().as_str())
        })
        .count()
}
