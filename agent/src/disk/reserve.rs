//! What the host's file systems keep free: disks are sparse, so all of them together may be promised more than there
//! is. New capsules are refused while some room is left, for those that run already.

use nix::sys::statvfs::statvfs;
use std::{io, path::PathBuf};

/// The file systems that disks are on, and what they keep free.
#[derive(Debug, Clone)]
pub struct Reserve {
    folders: Vec<PathBuf>,
    reserve_mb: u64,
}

/// Why there is no room for another disk.
#[derive(Debug, thiserror::Error)]
pub enum NoRoom {
    /// Less is free than must be.
    #[error(
        "{folder} has {free_mb} MiB free, and new capsules leave at least {reserve_mb} MiB (HEARTH_DISK_RESERVE_MB) to \
         those that run"
    )]
    Reserve {
        /// Where.
        folder: PathBuf,
        /// What is free.
        free_mb: u64,
        /// What must be.
        reserve_mb: u64,
    },
    /// It could not be asked.
    #[error("{folder}: {source}")]
    File {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Reserve {
    /// Keeps `reserve_mb` free on the file system of each of `folders`.
    pub fn new(folders: Vec<PathBuf>, reserve_mb: u64) -> Self {
        Self { folders, reserve_mb }
    }

    /// Whether there is room for another disk now. Two system calls at most.
    pub fn check(&self) -> Result<(), NoRoom> {
        for folder in &self.folders {
            let stat = statvfs(folder)
                .map_err(|errno| NoRoom::File { folder: folder.clone(), source: errno.into() })?;
            let free_mb = (stat.blocks_available() * stat.fragment_size()) >> 20;
            if !has_room(free_mb, self.reserve_mb) {
                return Err(NoRoom::Reserve { folder: folder.clone(), free_mb, reserve_mb: self.reserve_mb });
            }
        }
        Ok(())
    }
}

/// (pure) Whether a file system takes another disk. A new disk takes next to nothing itself, so what counts is what is
/// left; a reserve of nothing refuses nothing.
fn has_room(free_mb: u64, reserve_mb: u64) -> bool {
    reserve_mb <= free_mb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_kept_free_and_none_refuses_nothing() {
        assert!(has_room(0, 0) && has_room(1024, 1024) && has_room(2000, 1024));
        assert!(!has_room(1023, 1024) && !has_room(0, 1));
    }

    #[test]
    fn a_refusal_names_the_folder_the_room_and_the_setting() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = |mb| Reserve::new(vec![folder.path().to_owned()], mb);
        reserve(0).check().unwrap();
        let error = reserve(u64::MAX).check().unwrap_err().to_string();
        let path = folder.path().display().to_string();
        assert!(error.contains(&path) && error.contains("HEARTH_DISK_RESERVE_MB"), "{error}");
        assert!(matches!(Reserve::new(vec!["/no such folder".into()], 0).check(), Err(NoRoom::File { .. })));
    }
}
