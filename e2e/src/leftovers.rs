//! What a stopped Hearth must not leave on the host.

use std::{fs, path::Path};

/// Processes, mounts and files that belong to the data folder `dir`, in words. Empty when nothing is left.
pub fn of(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let folder = dir.to_string_lossy().into_owned();
    let mark = hearth_agent::config::Layout::new(dir, dir).mark();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let own = entry.file_name().to_string_lossy() == std::process::id().to_string();
        if !own && (command.contains(&mark) || command.contains(&folder)) {
            found.push(format!("process {}: {command}", entry.file_name().to_string_lossy()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(&folder)).map(|line| format!("mount {line}")));
    for path in ["agent/vmms", "agent/images"] {
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
