//! A VMM's folder: its disk, logs, sockets and record.

use super::launch::{LaunchError, host};
use crate::disk::sparse;
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

/// Lines of a log that an error shows.
const LOG_LINES: usize = 8;

/// A VMM's folder, removed when dropped before it is kept.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Makes it.
    pub fn create(path: PathBuf) -> Result<Self, LaunchError> {
        fs::create_dir(&path).map_err(host("the VMM's folder"))?;
        Ok(Self(path))
    }

    /// Copies a writable layer into it, for a user.
    pub fn upper(&self, from: &Path, uid: u32) -> Result<PathBuf, LaunchError> {
        let disk = self.0.join("upper.img");
        sparse::copy(from, &disk).map_err(host("copying the writable layer"))?;
        chown(&disk, Some(uid), Some(uid)).map_err(host("the writable layer"))?;
        Ok(disk)
    }

    /// Leaves it to the reaper.
    pub fn keep(self) -> PathBuf {
        let path = self.0.clone();
        std::mem::forget(self);
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a VMM's folder is left for the next start's sweep");
        }
    }
}

/// A log that is written at its end.
pub fn log_file(path: &Path) -> Result<File, LaunchError> {
    OpenOptions::new().append(true).create(true).open(path).map_err(host("a log file"))
}

/// The end of what a VMM wrote to its log.
pub fn log_end(folder: &Path) -> String {
    end_of(&folder.join("vmm.log"))
}

/// The last part of a log, on one line.
pub fn end_of(path: &Path) -> String {
    last_lines(&fs::read(path).unwrap_or_default())
}

/// (pure) The last lines of a text, on one line.
pub fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> =
        text.lines().rev().filter(|line| !line.trim().is_empty()).take(LOG_LINES).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
