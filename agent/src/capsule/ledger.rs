//! The ledger: a record per VMM in its folder, replaced atomically, by which a later agent finds what runs and takes it
//! over.
//!
//! Not synced to disk: it outlives the agent, not the host, and a host that went down has no VMMs left. Readable by root
//! only: it holds the capsule's environment and the token of its guest.

use super::{handle::Facts, settings::Settings};
use crate::{snapshot::manifest::Parent, vmm::process::Process};
use hearth_proto::id::CapsuleId;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

const FILE: &str = "record.json";
/// Version of the record. One of another version is not understood: its VMM is ended. A new field with a default that
/// fits older records needs no new version.
const VERSION: u32 = 2;

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

/// How far a VMM's capsule is, as a later agent must know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Being restored: nobody was told of it yet.
    Starting,
    /// It waits in a pool. Not rewritten when it is claimed, which is on the path of a run: whether its vCPUs run says
    /// that.
    Parked,
    /// It runs.
    Running,
    /// It is being captured: its guest may be frozen and its vCPUs may stand still.
    Capturing,
    /// It is being destroyed.
    Stopping,
    /// It was given up at the agent's stop; its processes are gone. The reason is in [`LifeRecord::reason`].
    Failed,
}

/// What is known of the capsule that a VMM runs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifeRecord {
    /// How far it is.
    pub phase: Phase,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What envd is asked with, set before the guest hears of it.
    pub token: String,
    /// The template it was restored from, as its user named it.
    pub template: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u64,
    /// When the capsule was made, in milliseconds since the epoch.
    pub created_at_ms: i64,
    /// The snapshot whose memory its own is a difference to.
    pub base: Parent,
    /// What it was asked to be.
    #[serde(default)]
    pub settings: Settings,
}

impl fmt::Debug for LifeRecord {
    /// Without token and environment, which are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LifeRecord").field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl LifeRecord {
    /// What does not change about the capsule.
    pub fn facts(&self, id: CapsuleId) -> Facts {
        Facts {
            id,
            template: self.template.clone(),
            vcpus: self.vcpus,
            memory_mb: self.memory_mb,
            created_at_ms: self.created_at_ms,
        }
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
    /// "qemu" or "firecracker": how it is controlled.
    pub engine: String,
    /// Name of the memory image that it maps, on the agent's tmpfs; none while a template is built.
    #[serde(default)]
    pub image: Option<String>,
    /// The snapshot it was started for; none while a template is built.
    pub snapshot: Option<String>,
    /// Its network slot; none in records of older agents.
    #[serde(default)]
    pub slot: Option<u32>,
    /// The capsule it runs; none while it is parked.
    pub capsule: Option<CapsuleId>,
    /// The same capsule's life. There whenever [`Record::capsule`] is.
    #[serde(default)]
    pub life: Option<LifeRecord>,
}

impl Record {
    /// A record of a VMM that was just started.
    pub fn new(
        boot_id: String,
        processes: Vec<ProcessRecord>,
        uid: u32,
        engine: &str,
        snapshot: Option<String>,
    ) -> Self {
        let engine = engine.to_owned();
        Self {
            version: VERSION,
            boot_id,
            processes,
            uid,
            engine,
            image: None,
            snapshot,
            slot: None,
            capsule: None,
            life: None,
        }
    }
}

/// Writes the record into a VMM's folder.
pub fn write(folder: &Path, record: &Record) -> io::Result<()> {
    let draft = folder.join("record.draft");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    fs::rename(draft, folder.join(FILE))
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads a VMM's record. `None` when there is none. An error of kind `InvalidData` when it is not understood.
pub fn read(folder: &Path) -> io::Result<Option<Record>> {
    let bytes = match fs::read(folder.join(FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    if version != VERSION {
        return Err(invalid(format!("its record has version {version}, this agent writes {VERSION}")));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| invalid(error.to_string()))
}

/// The id of this boot of the host.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_written_is_read_by_root_only() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        let processes = vec![ProcessRecord { pid: 7, start_ticks: 9 }];
        let mut record = Record::new(boot_id().unwrap(), processes, 520_000, "qemu", Some("key".to_owned()));
        write(folder.path(), &record).unwrap();
        record.capsule = Some(CapsuleId::new());
        let mut settings = Settings::default();
        settings.env.insert("KEY".to_owned(), "secret".to_owned());
        record.life = Some(LifeRecord {
            phase: Phase::Running,
            reason: String::new(),
            token: "secret".to_owned(),
            template: "code".to_owned(),
            vcpus: 1,
            memory_mb: 512,
            created_at_ms: 5,
            base: Parent { key: "code-1".to_owned(), memory_xxh3: 6 },
            settings,
        });
        write(folder.path(), &record).unwrap();
        assert_eq!(read(folder.path()).unwrap(), Some(record.clone()));
        assert!(!format!("{record:?}").contains("secret"));
        let mode = fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_record_of_another_version_is_named_and_not_guessed() {
        let folder = tempfile::tempdir().unwrap();
        for (text, word) in [(r#"{"version": 1, "boot_id": "x"}"#, "version 1"), ("{", "EOF"), ("[]", "")] {
            fs::write(folder.path().join(FILE), text).unwrap();
            let error = read(folder.path()).unwrap_err();
            assert!(
                error.kind() == io::ErrorKind::InvalidData && error.to_string().contains(word),
                "{error}"
            );
        }
    }
}
