//! Looking at what an earlier agent left: each VMM's record, compared with /proc.

use super::plan::Found;
use crate::{
    capsule::ledger::{self, ProcessRecord, Record},
    reaper::sweep::folders,
    vmm::{
        folder::{end_of, log_end},
        process::{Process, start_ticks},
    },
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A VMM of an earlier agent.
#[derive(Debug)]
pub struct Survivor {
    /// Its folder.
    pub folder: PathBuf,
    /// What is known of it.
    pub found: Found,
    /// Those of its processes that live: all of them unless it is dead.
    pub processes: Vec<Arc<Process>>,
}

/// Looks at every VMM's folder. Those whose record is missing or not understood are left out, with a line in the log.
pub fn survey(vmms: &Path) -> io::Result<Vec<Survivor>> {
    let boot_id = ledger::boot_id()?;
    let mut survivors = Vec::new();
    for folder in folders(vmms)? {
        match ledger::read(&folder) {
            Ok(Some(record)) => survivors.push(look(folder, record, &boot_id)),
            // A crash in the middle of a start.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "a VMM is not understood and is ended");
            }
        }
    }
    Ok(survivors)
}

fn look(folder: PathBuf, record: Record, boot_id: &str) -> Survivor {
    if record.boot_id != boot_id {
        let dead = Some("the host was restarted".to_owned());
        return Survivor { folder, found: Found { record, dead }, processes: Vec::new() };
    }
    let mut processes = Vec::new();
    let mut gone = None;
    for (process, who) in record.processes.iter().zip(["the VMM", "its pager"]) {
        match living(process) {
            Some(process) => processes.push(process),
            // The VMM's end is the cause when both are gone.
            None => gone = gone.or(Some(who)),
        }
    }
    let dead = gone.map(|who| {
        let log = [log_end(&folder), end_of(&folder.join("pager.log"))].join(" ");
        format!("{who} ended while no agent ran: {}", log.trim())
    });
    Survivor { folder, found: Found { record, dead }, processes }
}

/// The process, if it is still the one that was meant.
fn living(record: &ProcessRecord) -> Option<Arc<Process>> {
    let process = Process::open(record.pid).ok()?;
    // The start is looked at after the pidfd is held, so that the pid cannot be given to another in between.
    let is_meant = start_ticks(record.pid).ok() == Some(record.start_ticks);
    // One that has ended stays in the table until whoever took it over asks for it.
    (is_meant && !process.has_ended()).then(|| Arc::new(process))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn a_living_process_is_found_and_a_dead_or_reused_pid_is_not() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id() as i32;
        let start = start_ticks(pid).unwrap();
        assert!(living(&ProcessRecord { pid, start_ticks: start }).is_some());
        assert!(
            living(&ProcessRecord { pid, start_ticks: start + 1 }).is_none(),
            "another process of this pid"
        );
        let vmms = tempfile::tempdir().unwrap();
        let record = |boot_id: String, pager: u64| {
            let mut processes = vec![ProcessRecord { pid, start_ticks: start }];
            processes.push(ProcessRecord { pid, start_ticks: pager });
            Record::new(boot_id, processes, 520_000, "qemu", None)
        };
        for (name, boot_id, pager) in [("a", None, start), ("b", None, 1), ("c", Some("other"), start)] {
            let folder = vmms.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("pager.log"), "why\n").unwrap();
            let boot_id = boot_id.map_or_else(|| ledger::boot_id().unwrap(), str::to_owned);
            ledger::write(&folder, &record(boot_id, pager)).unwrap();
        }
        fs::create_dir(vmms.path().join("no-record")).unwrap();
        let mut found = survey(vmms.path()).unwrap();
        found.sort_by(|a, b| a.folder.cmp(&b.folder));
        let dead: Vec<Option<&str>> = found.iter().map(|found| found.found.dead.as_deref()).collect();
        let expected =
            [None, Some("its pager ended while no agent ran: why"), Some("the host was restarted")];
        assert_eq!(dead, expected);
        assert_eq!(found.iter().map(|found| found.processes.len()).collect::<Vec<_>>(), [2, 1, 0]);
        child.kill().unwrap();
        // A zombie until it is waited for.
        while living(&ProcessRecord { pid, start_ticks: start }).is_some() {
            tokio::task::yield_now().await;
        }
        child.wait().unwrap();
    }
}
