//! Files of a run: those written before it, and those it made or changed.
//!
//! All access is on a blocking thread and with the user's rights, not ours: paths are the user's choice and
//! may lead through links he made.

mod artifacts;
mod watched;

pub(crate) use watched::Watched;

use crate::{config::User, run::File};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}")]
pub(crate) struct FileError {
    path: String,
    source: io::Error,
}

/// Does `work` on a blocking thread with the user's rights on files.
pub(crate) async fn as_user<T: Send + 'static>(
    user: Option<&User>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let ids = user.map(|user| (Uid::from_raw(user.uid), Gid::from_raw(user.gid)));
    let task = tokio::task::spawn_blocking(move || {
        let _rights = ids.map(|(uid, gid)| Rights::take(uid, gid));
        work()
    });
    task.await.map_err(io::Error::other)
}

/// This thread's rights on files (setfsuid(2): per thread), given back when dropped.
struct Rights {
    uid: Uid,
    gid: Gid,
}

impl Rights {
    fn take(uid: Uid, gid: Gid) -> Self {
        // The group first: afterwards the right to change it is gone.
        let gid = setfsgid(gid);
        Self { uid: setfsuid(uid), gid }
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        setfsuid(self.uid);
        setfsgid(self.gid);
    }
}

/// Writes `files`, relative ones below `cwd`; makes parent folders.
pub(crate) fn write(cwd: &Path, files: Vec<File>) -> Result<(), FileError> {
    for file in files {
        let path: PathBuf = cwd.join(&file.path);
        let written =
            path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, &file.content));
        written.map_err(|source| FileError { path: file.path.display().to_string(), source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_made_and_the_file_at_fault_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |path: &str| File { path: path.into(), content: b"x".to_vec() };
        write(folder.path(), vec![file("a/b/c.txt")]).unwrap();
        assert_eq!(fs::read(folder.path().join("a/b/c.txt")).unwrap(), b"x");
        let error = write(folder.path(), vec![file("a/b/c.txt/d")]).unwrap_err();
        assert!(error.to_string().starts_with("cannot write a/b/c.txt/d:"), "{error}");
    }
}
