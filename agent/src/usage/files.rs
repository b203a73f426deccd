//! Histories on disk, one small file per capsule, so that they outlive the agent. Losing one costs a graph, so they are
//! not synced, and one that cannot be read begins anew.

use super::history::History;
use hearth_proto::id::CapsuleId;
use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// A full history has some 100 KB.
const BYTES_MAX: u64 = 1 << 20;

/// The folder of histories.
#[derive(Debug, Clone)]
pub struct UsageFiles {
    folder: PathBuf,
}

impl UsageFiles {
    /// In `folder`, which is made if it is missing.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    fn path(&self, id: CapsuleId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    /// A capsule's history; empty when there is none.
    pub fn read(&self, id: CapsuleId) -> History {
        let path = self.path(id);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "a capsule's usage cannot be read");
                }
                return History::default();
            }
        };
        let mut bytes = Vec::new();
        let read = file.take(BYTES_MAX).read_to_end(&mut bytes);
        let history = read.and_then(|_| Ok(serde_json::from_slice(&bytes)?));
        history.unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "a capsule's usage cannot be read");
            History::default()
        })
    }

    /// Replaces a capsule's history.
    pub fn write(&self, id: CapsuleId, history: &History) {
        let path = self.path(id);
        let draft = path.with_extension("draft");
        let written = serde_json::to_vec(history)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&draft, bytes))
            .and_then(|()| fs::rename(&draft, &path));
        if let Err(error) = written {
            // The warning says more than an error of the removal.
            let _ = fs::remove_file(&draft);
            tracing::warn!(path = %path.display(), %error, "a capsule's usage cannot be written");
        }
    }

    /// Forgets a capsule that has ended.
    pub fn remove(&self, id: CapsuleId) {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a capsule's usage is left for the next start");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Removes all but those of `wanted`.
    pub fn sweep(&self, wanted: &HashSet<CapsuleId>) -> io::Result<()> {
        remove_others(&self.folder, &wanted.iter().map(|id| self.path(*id)).collect())
    }
}

/// Removes the files of a folder but those that are wanted.
pub fn remove_others(folder: &Path, wanted: &HashSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !wanted.contains(&path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::history::Sample, *};

    #[test]
    fn what_is_written_is_read_until_it_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let files = UsageFiles::open(&folder.path().join("usage")).unwrap();
        let (kept, gone) = (CapsuleId::new(), CapsuleId::new());
        let mut history = History::default();
        history.add(Sample { at_ms: 10, cpu_us: 5, ..Sample::default() });
        assert_eq!(files.read(kept), History::default());
        files.write(kept, &history);
        files.write(gone, &history);
        fs::write(files.folder.join("x.draft"), b"half").unwrap();
        files.sweep(&HashSet::from([kept])).unwrap();
        assert_eq!(files.read(kept), history);
        assert_eq!(files.read(gone), History::default());
        fs::write(files.path(kept), b"{\"series\": 5").unwrap();
        assert_eq!(files.read(kept), History::default(), "a damaged one begins anew");
        files.remove(kept);
        files.remove(kept);
        assert_eq!(fs::read_dir(&files.folder).unwrap().count(), 0);
    }
}
