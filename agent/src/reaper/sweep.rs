//! At start (and at `hearth down`): end what an earlier agent left, but for what is adopted.
//!
//! Three ways to find it, because a crash can come between any two steps: the record in each VMM's folder, the mark that
//! every VMM and pager of this data folder has on its command line, and the data folder's control groups.

use crate::{
    capsule::ledger::{self, Phase},
    cgroup,
    config::Layout,
    network::router,
    vmm::process::{Process, start_ticks},
};
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::timeout;

const EXIT_DEADLINE: Duration = Duration::from_secs(20);

/// What a sweep found and ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Processes that were killed.
    pub processes: usize,
    /// Folders that were removed.
    pub folders: usize,
    /// Capsules that were lost: those that had not been told to end.
    pub capsules: usize,
}

/// What a sweep leaves alone.
#[derive(Debug, Default, Clone)]
pub struct Spared {
    /// VMMs' folders.
    pub folders: HashSet<PathBuf>,
    /// VMMs and pagers.
    pub pids: HashSet<i32>,
    /// Their network slots.
    pub slots: HashSet<u32>,
}

/// Ends all VMMs and pagers of this data folder, but for the `spared`, and removes their folders.
pub async fn sweep(layout: &Layout, spared: &Spared) -> io::Result<Swept> {
    let mut swept = Swept::default();
    let boot_id = ledger::boot_id()?;
    let vmms = layout.vmms();
    let mut folders = folders(&vmms)?;
    folders.retain(|folder| !spared.folders.contains(folder));
    let mut doomed = Vec::new();
    for folder in &folders {
        // A folder without a readable record is a VMM that was never started, or is found by its mark below.
        let Ok(Some(record)) = ledger::read(folder) else { continue };
        if record.boot_id == boot_id {
            doomed.extend(record.processes.iter().map(|process| (process.pid, Some(process.start_ticks))));
        }
        let is_lost = |phase| matches!(phase, Phase::Parked | Phase::Running | Phase::Capturing);
        swept.capsules += usize::from(record.life.is_some_and(|life| is_lost(life.phase)));
    }
    let marked = marked(&layout.mark(), &vmms)?;
    let loose = marked.into_iter().chain(cgroup::members(&layout.mark()));
    doomed.extend(loose.filter(|pid| !spared.pids.contains(pid)).map(|pid| (pid, None)));
    for (pid, started) in doomed {
        if end(pid, started).await? {
            swept.processes += 1;
        }
    }
    let names = spared.folders.iter().filter_map(|folder| folder.file_name());
    let groups = names.map(|name| format!("{}{}", layout.mark(), name.to_string_lossy())).collect();
    cgroup::sweep(&layout.mark(), &groups);
    router::sweep(&layout.router(), &layout.mark(), &spared.slots).map_err(io::Error::other)?;
    for folder in folders {
        fs::remove_dir_all(&folder)?;
        swept.folders += 1;
    }
    Ok(swept)
}

/// What is in a folder; nothing when it is not there.
pub(crate) fn folders(vmms: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(vmms) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Kills the process if it is the one that was meant, and waits for its end. False when it was gone already.
async fn end(pid: i32, started: Option<u64>) -> io::Result<bool> {
    // The second look, after the pidfd is held, rules out that the pid was given to another process in between.
    let is_meant =
        |started: Option<u64>| started.is_none_or(|started| start_ticks(pid).ok() == Some(started));
    if !is_meant(started) {
        return Ok(false);
    }
    let Ok(process) = Process::open(pid) else { return Ok(false) };
    // One that was just killed stays in the table until its parent asks for it.
    if !is_meant(started) || process.has_ended() {
        process.reap();
        return Ok(false);
    }
    process.kill()?;
    if timeout(EXIT_DEADLINE, process.exited()).await.is_err() {
        return Err(io::Error::other(format!("process {pid} does not end")));
    }
    process.reap();
    Ok(true)
}

/// Processes that carry the mark of this data folder, or a path in its VMMs' folder, as an argument.
fn marked(mark: &str, vmms: &Path) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // The process may have ended since.
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        if is_ours(&command, mark, vmms) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// (pure) Whether a command line (arguments ended by zero bytes) is one of a VMM or pager of ours.
fn is_ours(command: &[u8], mark: &str, vmms: &Path) -> bool {
    let arguments: Vec<&[u8]> = command.split(|byte| *byte == 0).skip(1).collect();
    let has = |option: &[u8], prefix: &[u8]| {
        arguments.windows(2).any(|pair| pair[0] == option && pair[1].starts_with(prefix))
    };
    let vmms = [vmms.as_os_str().as_encoded_bytes(), b"/"].concat();
    // QEMU's name, the jailer's and Firecracker's id.
    has(b"-name", mark.as_bytes())
        || has(b"--id", mark.as_bytes())
        || (arguments.first() == Some(&b"pager".as_slice()) && has(b"--stats", &vmms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_processes_of_this_data_folder_are_ours() {
        let vmms = Path::new("/d/agent/vmms");
        assert!(is_ours(b"qemu\0-name\0hearth-ab-1\0-S\0", "hearth-ab-", vmms));
        assert!(is_ours(b"/firecracker\0--id\0hearth-ab-1\0--api-sock\0/api.sock\0", "hearth-ab-", vmms));
        assert!(!is_ours(b"qemu\0-name\0hearth-cd-1\0", "hearth-ab-", vmms));
        assert!(!is_ours(b"vi\0hearth-ab-1\0", "hearth-ab-", vmms));
        assert!(is_ours(b"hearth\0pager\0--stats\0/d/agent/vmms/x/stats\0", "m", vmms));
        assert!(!is_ours(b"hearth\0pager\0--stats\0/d/agent/vmms2/x/stats\0", "m", vmms));
        assert!(!is_ours(b"hearth\0up\0--stats\0/d/agent/vmms/x/stats\0", "m", vmms));
    }
}
