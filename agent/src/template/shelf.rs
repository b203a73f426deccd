//! Which snapshots of templates stay on disk. Whoever uses one holds a shared lock on its folder (`flock`), also across
//! Hearths that share a cache; the newest few that nobody uses stay for a change back, older ones are removed.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::SystemTime,
};

/// Unused ones that stay: a change of size or a new root filesystem, and back.
pub const UNUSED_KEPT: usize = 3;

/// A snapshot's folder that is in use. Dropping it gives it up.
#[derive(Debug)]
pub struct InUse {
    _folder: File,
}

impl InUse {
    /// Takes the folder into use; `None` when it is not there. Blocks while somebody decides whether it stays, which is
    /// a matter of milliseconds, or removes it.
    pub fn of(folder: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        file.lock_shared()?;
        // Between opening and locking it may have been removed.
        let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
        if fs::metadata(folder).map(identity).ok() != Some(file.metadata().map(identity)?) {
            return Ok(None);
        }
        // By this the newest are told: by their last use.
        file.set_modified(SystemTime::now())?;
        Ok(Some(Self { _folder: file }))
    }
}

/// Removes unused snapshots in `shelf` but the `kept` that were used last. Returns the keys that were removed.
pub fn prune(shelf: &Path, kept: usize) -> io::Result<Vec<String>> {
    let mut unused = Vec::new();
    for entry in fs::read_dir(shelf)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || !entry.file_type()?.is_dir() {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        // Whoever wants to use it meanwhile waits.
        if file.try_lock().is_ok() {
            unused.push((file.metadata()?.modified()?, name, file));
        }
    }
    unused.sort_by_key(|(used, _, _)| std::cmp::Reverse(*used));
    let old = unused.split_off(kept.min(unused.len()));
    drop(unused);
    let mut removed = Vec::new();
    for (_, name, _lock) in old {
        // First out of its name, at once and whole: half a snapshot must not be found. What a crash leaves under the
        // new name, the store's next start removes with its drafts.
        let doomed = shelf.join(format!(".draft-removed-{name}"));
        fs::rename(shelf.join(&name), &doomed)?;
        fs::remove_dir_all(&doomed)?;
        removed.push(name);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{path::PathBuf, time::Duration};

    fn snapshot(shelf: &Path, name: &str, age: u64) -> PathBuf {
        let folder = shelf.join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("manifest.json"), "{}").unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        File::open(&folder).unwrap().set_modified(time).unwrap();
        folder
    }

    #[test]
    fn the_newest_unused_and_all_that_are_in_use_stay() {
        let shelf = tempfile::tempdir().unwrap();
        for age in 1..=5 {
            snapshot(shelf.path(), &format!("code-{age}"), age * 100);
        }
        fs::create_dir(shelf.path().join(".draft-x")).unwrap();
        let used = InUse::of(&shelf.path().join("code-5")).unwrap().expect("in use");
        let also = InUse::of(&shelf.path().join("code-5")).unwrap().expect("by two");
        assert_eq!(prune(shelf.path(), 3).unwrap(), ["code-4"]);
        assert_eq!(prune(shelf.path(), 3).unwrap(), Vec::<String>::new());
        assert!(shelf.path().join(".draft-x").exists(), "drafts are the store's");
        drop((used, also));
        // It was used last, so it is the newest now.
        assert_eq!(prune(shelf.path(), 1).unwrap(), ["code-1", "code-2", "code-3"].map(str::to_owned));
        assert!(shelf.path().join("code-5").exists());
    }

    #[test]
    fn what_is_not_there_or_being_removed_cannot_be_used() {
        let shelf = tempfile::tempdir().unwrap();
        assert!(InUse::of(&shelf.path().join("code-1")).unwrap().is_none());
        let folder = snapshot(shelf.path(), "code-1", 1);
        let remover = File::open(&folder).unwrap();
        remover.lock().unwrap();
        let user = std::thread::spawn({
            let folder = folder.clone();
            move || InUse::of(&folder).unwrap().is_some()
        });
        fs::rename(&folder, shelf.path().join(".draft-removed-code-1")).unwrap();
        drop(remover);
        assert!(!user.join().unwrap(), "a snapshot that is gone is in use");
    }
}
