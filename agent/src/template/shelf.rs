//! Which snapshots of templates stay on disk. Whoever uses one holds a shared lock on its folder (`flock`), also across
//! Hearths that share a cache; the newest few that nobody uses stay for a change back, older ones are removed. Those
//! that frozen capsules stand on are marked by a file in their folder, which holds also while no Hearth runs.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::SystemTime,
};
use xxhash_rust::xxh3::xxh3_64;

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

/// Marks begin like this; behind it, a name for who needs the snapshot.
const MARK: &str = "kept-";

fn mark_of(owner: &Path) -> String {
    format!("{MARK}{:016x}", xxh3_64(owner.as_os_str().as_bytes()))
}

/// Marks the snapshot `key` as needed by what lies in `owner`, a folder: while that is there, it is never removed.
/// Repeating it is harmless. Durable when it returns.
pub fn keep(shelf: &Path, key: &str, owner: &Path) -> io::Result<()> {
    let path = shelf.join(key).join(mark_of(owner));
    if path.exists() {
        return Ok(());
    }
    let mut file = File::create(&path)?;
    file.write_all(owner.as_os_str().as_bytes())?;
    file.sync_all()?;
    File::open(shelf.join(key))?.sync_all()
}

/// Takes `owner`'s marks from all snapshots but those in `needed`.
pub fn keep_only(shelf: &Path, needed: &HashSet<String>, owner: &Path) -> io::Result<()> {
    let mark = mark_of(owner);
    for entry in fs::read_dir(shelf)? {
        let entry = entry?;
        if needed.contains(&*entry.file_name().to_string_lossy()) {
            continue;
        }
        match fs::remove_file(entry.path().join(&mark)) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether somebody who is still there has marked the snapshot in `folder`; `but`: whose marks do not count.
pub fn is_kept(folder: &Path, but: Option<&Path>) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(MARK) {
            let owner = PathBuf::from(OsString::from_vec(fs::read(entry.path())?));
            // A mark that says nothing (a crash cut it) keeps.
            if owner.as_os_str().is_empty() || (but != Some(&*owner) && owner.exists()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
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
        if file.try_lock().is_ok() && !is_kept(&entry.path(), None)? {
            unused.push((file.metadata()?.modified()?, name, file));
        }
    }
    unused.sort_by_key(|(used, _, _)| std::cmp::Reverse(*used));
    let old = unused.split_off(kept.min(unused.len()));
    drop(unused);
    let mut removed = Vec::new();
    for (_, name, _lock) in old {
        take_away(shelf, &name)?;
        removed.push(name);
    }
    Ok(removed)
}

/// First out of its name, at once and whole: half a snapshot must not be found. What a crash leaves under the new name,
/// the store's next start removes with its drafts.
fn take_away(shelf: &Path, name: &str) -> io::Result<()> {
    let doomed = shelf.join(format!(".draft-removed-{name}"));
    fs::rename(shelf.join(name), &doomed)?;
    fs::remove_dir_all(&doomed)
}

/// Removes the snapshot `key`, which `owner` does not need any more. False when somebody uses it or else keeps it.
pub fn remove(shelf: &Path, key: &str, owner: &Path) -> io::Result<bool> {
    let folder = shelf.join(key);
    let file = match File::open(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        opened => opened?,
    };
    if file.try_lock().is_err() || is_kept(&folder, Some(owner))? {
        return Ok(false);
    }
    take_away(shelf, key).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
    fn what_frozen_capsules_stand_on_stays_while_they_are_there() {
        let shelf = tempfile::tempdir().unwrap();
        let owner = tempfile::tempdir().unwrap();
        let gone = shelf.path().join("no such owner");
        for key in ["a", "b", "c", "d"] {
            snapshot(shelf.path(), key, 100);
        }
        for _ in 0..2 {
            keep(shelf.path(), "a", owner.path()).unwrap();
            keep(shelf.path(), "b", owner.path()).unwrap();
        }
        keep(shelf.path(), "b", &gone).unwrap();
        keep(shelf.path(), "c", &gone).unwrap();
        let mut removed = prune(shelf.path(), 0).unwrap();
        removed.sort();
        assert_eq!(removed, ["c", "d"]);
        keep_only(shelf.path(), &HashSet::from(["a".to_owned()]), owner.path()).unwrap();
        assert_eq!(prune(shelf.path(), 0).unwrap(), ["b"]);
        fs::remove_dir(owner.path()).unwrap();
        assert_eq!(prune(shelf.path(), 0).unwrap(), ["a"], "its owner is gone");
        fs::create_dir(owner.path()).unwrap();
        assert!(keep(shelf.path(), "a", owner.path()).is_err(), "what is gone cannot be kept");
        snapshot(shelf.path(), "e", 100);
        keep(shelf.path(), "e", owner.path()).unwrap();
        let other = tempfile::tempdir().unwrap();
        assert!(!remove(shelf.path(), "e", other.path()).unwrap(), "it is another's too");
        assert!(remove(shelf.path(), "e", owner.path()).unwrap() && !shelf.path().join("e").exists());
        assert!(remove(shelf.path(), "e", owner.path()).unwrap());
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
