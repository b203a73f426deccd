//! Records of paused capsules: a file each, by which a later agent lists and resumes them.
//!
//! A record is written, synced and renamed before the VMM is given up, and removed when the capsule runs again. It
//! holds the capsule's environment, which may hold secrets; so does the capsule's memory beside it. Both are readable
//! by root only and go together.

use super::settings::Settings;
use hearth_proto::id::CapsuleId;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Version of a record. Another version is refused.
const VERSION: u32 = 1;
/// Largest record we read: an environment is bounded by the guest's 1 MiB.
const BYTES_MAX: u64 = 16 << 20;
const ENDING: &str = "json";

/// What a paused capsule is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedRecord {
    version: u32,
    /// Its id.
    pub id: CapsuleId,
    /// The template it was restored from.
    pub template: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u64,
    /// When the capsule was made, in milliseconds since the epoch.
    pub created_at_ms: i64,
    /// Key of the generation that it is resumed from.
    pub generation: String,
    /// What it was asked to be.
    #[serde(flatten)]
    pub settings: Settings,
}

impl std::fmt::Debug for PausedRecord {
    /// Without the environment: it may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PausedRecord")
            .field("id", &self.id)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("record of a paused capsule, {path}: {source}")]
pub struct PausedError {
    path: PathBuf,
    source: io::Error,
}

/// The folder of records.
#[derive(Debug, Clone)]
pub struct PausedRecords {
    folder: PathBuf,
}

impl PausedRecord {
    /// The record of a capsule.
    pub fn new(facts: &super::handle::Facts, generation: &str, settings: &Settings) -> Self {
        Self {
            version: VERSION,
            id: facts.id,
            template: facts.template.clone(),
            vcpus: facts.vcpus,
            memory_mb: facts.memory_mb,
            created_at_ms: facts.created_at_ms,
            generation: generation.to_owned(),
            settings: settings.clone(),
        }
    }
}

impl PausedRecords {
    /// The records in `folder`, which is made if it is missing.
    pub fn open(folder: &Path) -> Result<Self, PausedError> {
        let fail = fail(folder);
        fs::create_dir_all(folder).map_err(&fail)?;
        for entry in fs::read_dir(folder).map_err(&fail)? {
            let path = entry.map_err(&fail)?.path();
            if path.extension().is_some_and(|ending| ending == "draft") {
                fs::remove_file(&path).map_err(&fail)?;
            }
        }
        Ok(Self { folder: folder.to_owned() })
    }

    fn path(&self, id: CapsuleId) -> PathBuf {
        self.folder.join(format!("{id}.{ENDING}"))
    }

    /// Writes a record for good: it is there, whole, when this returns, or as it was.
    pub fn write(&self, record: &PausedRecord) -> Result<(), PausedError> {
        let path = self.path(record.id);
        let draft = path.with_extension("draft");
        let written = self.write_draft(&draft, record).and_then(|()| fs::rename(&draft, &path));
        if written.is_err() {
            // The error that is returned says more than one of the clean-up.
            let _ = fs::remove_file(&draft);
        }
        written.and_then(|()| sync(&self.folder)).map_err(fail(&path))
    }

    fn write_draft(&self, draft: &Path, record: &PausedRecord) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(draft)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()
    }

    /// Removes a record for good. One that is not there is no error.
    pub fn remove(&self, id: CapsuleId) -> Result<(), PausedError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Ok(()) => sync(&self.folder).map_err(fail(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(fail(&path)(error)),
        }
    }

    /// All records, and what is wrong with those that cannot be read.
    pub fn list(&self) -> Result<(Vec<PausedRecord>, Vec<PausedError>), PausedError> {
        let fail_folder = fail(&self.folder);
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.folder).map_err(&fail_folder)? {
            let path = entry.map_err(&fail_folder)?.path();
            match read(&path) {
                Ok(record) if self.path(record.id) == path => records.push(record),
                Ok(_) => errors.push(fail(&path)(invalid("it is another capsule's"))),
                Err(error) => errors.push(fail(&path)(error)),
            }
        }
        Ok((records, errors))
    }
}

fn read(path: &Path) -> io::Result<PausedRecord> {
    let mut bytes = Vec::new();
    File::open(path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    let record: PausedRecord = serde_json::from_slice(&bytes)?;
    if record.version != VERSION {
        return Err(invalid("another version's"));
    }
    Ok(record)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn fail(path: &Path) -> impl Fn(io::Error) -> PausedError + '_ {
    move |source| PausedError { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashMap, os::unix::fs::PermissionsExt};

    fn record() -> PausedRecord {
        PausedRecord {
            version: VERSION,
            id: CapsuleId::new(),
            template: "code".to_owned(),
            vcpus: 1,
            memory_mb: 1024,
            created_at_ms: 5,
            generation: "gen-1".to_owned(),
            settings: Settings {
                env: HashMap::from([("KEY".to_owned(), "secret".to_owned())]),
                ..Settings::default()
            },
        }
    }

    #[test]
    fn what_is_written_is_listed_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let records = PausedRecords::open(&folder.path().join("paused")).unwrap();
        let record = record();
        records.write(&record).unwrap();
        records.write(&record).unwrap();
        let mode = fs::metadata(records.path(record.id)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{record:?}").contains("secret"));
        assert_eq!(records.list().unwrap().0, std::slice::from_ref(&record));
        records.remove(record.id).unwrap();
        records.remove(record.id).unwrap();
        assert!(records.list().unwrap().0.is_empty());
    }

    #[test]
    fn a_damaged_record_is_named_and_the_others_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let records = PausedRecords::open(folder.path()).unwrap();
        records.write(&record()).unwrap();
        fs::write(folder.path().join("cl-x.json"), b"{\"version\": 1").unwrap();
        fs::copy(records.path(records.list().unwrap().0[0].id), folder.path().join("cl-y.json")).unwrap();
        fs::write(folder.path().join("cl-z.draft"), b"").unwrap();
        let records = PausedRecords::open(folder.path()).unwrap();
        let (read, errors) = records.list().unwrap();
        assert_eq!((read.len(), errors.len()), (1, 2));
        assert!(errors.iter().any(|error| error.to_string().contains("cl-x.json")), "{errors:?}");
    }
}
