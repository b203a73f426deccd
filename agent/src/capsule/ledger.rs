//! The ledger: a record per VMM in its folder, replaced atomically, by which a later agent finds what runs.
//!
//! Not synced to disk: it outlives the agent, not the host, and a host that went down has no VMMs left.

use crate::vmm::process::Process;
use hearth_proto::id::CapsuleId;
use serde::{Deserialize, Serialize};
use std::{fs, io, path::Path};

const FILE: &str = "record.json";
/// Version of the record.
const VERSION: u32 = 1;

/// A process, named for good by pid and start time (within one boot).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Its pid.
    pub pid: i32,
    /// Clock ticks since boot at its start.
    pub start_ticks: u64,
}

impl From<&Process> for ProcessRecord {
    fn from(process: &Process) -> Self {
        Self { pid: process.pid(), start_ticks: process.start_ticks() }
    }
}

/// What is known of a VMM on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Boot in which the processes were started.
    pub boot_id: String,
    /// VMM first, then its pager.
    pub processes: Vec<ProcessRecord>,
    /// Its user id.
    pub uid: u32,
    /// The snapshot it was started for; none while a template is built.
    pub snapshot: Option<String>,
    /// Its network slot; none in records of older agents.
    #[serde(default)]
    pub slot: Option<u32>,
    /// The capsule it runs; none while it is parked.
    pub capsule: Option<CapsuleId>,
}

impl Record {
    /// A record of a VMM that was just started.
    pub fn new(boot_id: String, processes: Vec<ProcessRecord>, uid: u32, snapshot: Option<String>) -> Self {
        Self { version: VERSION, boot_id, processes, uid, snapshot, slot: None, capsule: None }
    }
}

/// Writes the record into a VMM's folder.
pub fn write(folder: &Path, record: &Record) -> io::Result<()> {
    let draft = folder.join("record.draft");
    fs::write(&draft, serde_json::to_vec(record)?)?;
    fs::rename(draft, folder.join(FILE))
}

/// Reads a VMM's record. `None` when there is none.
pub fn read(folder: &Path) -> io::Result<Option<Record>> {
    match fs::read(folder.join(FILE)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The id of this boot of the host.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        let mut record = Record::new(
            boot_id().unwrap(),
            vec![ProcessRecord { pid: 7, start_ticks: 9 }],
            520_000,
            Some("key".to_owned()),
        );
        write(folder.path(), &record).unwrap();
        record.capsule = Some(CapsuleId::new());
        write(folder.path(), &record).unwrap();
        assert_eq!(read(folder.path()).unwrap(), Some(record));
    }
}
