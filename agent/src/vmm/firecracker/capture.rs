//! Captures of a restored Firecracker: a differential snapshot of what was written since its restore, once in a life.
//!
//! Firecracker forgets its log of written pages at each snapshot, and may do so at one that fails. So the log is whole
//! only until the first one; each later snapshot is a full one, which needs no log (decision 0016 has why it is not a
//! second difference). The same goes for a Firecracker of which nothing is known.

use super::{Firecracker, FirecrackerError, api::SnapshotCreate, blocking, machine::path, take_out};
use crate::{engine::firecracker::Version, memory::dumped::Dump, vmm::machine::Size};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

/// What is known of a restored Firecracker's written pages.
#[derive(Debug)]
pub struct Life {
    /// Bytes of guest memory; none while a template is built.
    ram_bytes: u64,
    /// The layer of the generation that it was restored from.
    under: Option<File>,
    /// Whether a differential snapshot is of use here at all.
    can_differ: bool,
    /// Whether all that was written is in Firecracker's log.
    has_log: AtomicBool,
}

impl Life {
    /// Of one that nothing was loaded into yet. `tells_holes`: of the jail's filesystem.
    pub fn new(size: Size, version: Version, tells_holes: bool, under: Option<File>) -> Self {
        let ram_bytes = size.ram_bytes();
        let can_differ = tells_holes && version.has_sound_log(ram_bytes);
        Self { ram_bytes, under, can_differ, has_log: AtomicBool::new(true) }
    }

    /// Of one that runs already, started by an agent that is gone: its first capture is a full snapshot.
    pub fn unknown(size: Size, version: Version, tells_holes: bool) -> Self {
        let has_log = AtomicBool::new(false);
        Self { has_log, ..Self::new(size, version, tells_holes, None) }
    }

    /// Whether the snapshot that is about to be made is a differential one: the first of a life is.
    fn begin(&self) -> bool {
        let had_log = self.has_log.swap(false, Ordering::SeqCst);
        self.can_differ && had_log
    }
}

impl Firecracker {
    /// Saves the device state of a stopped capsule into the new file `state`, and returns its own pages of the same
    /// instant. After a failure it can run on, and be captured again.
    pub(in crate::vmm) async fn capture(&self, state: &Path) -> Result<Dump, FirecrackerError> {
        let life = &self.life;
        let differs = life.begin();
        let (saved, written) = (self.inside(path::SAVED), self.inside(path::WRITTEN));
        // A file that a failed call left. The jailed user's folder: removing follows no link.
        let stale = [saved.clone(), written.clone()];
        blocking(move || stale.iter().try_for_each(|path| remove(path))).await?;
        let create = SnapshotCreate {
            snapshot_type: if differs { "Diff" } else { "Full" },
            snapshot_path: path::SAVED,
            mem_file_path: path::WRITTEN,
        };
        let (uid, ram_bytes) = (self.uid, life.ram_bytes);
        let created = match self.api.create_snapshot(&create).await {
            Ok(()) => {
                let written = written.clone();
                blocking(move || open(&written, uid, ram_bytes)).await.map_err(FirecrackerError::from)
            }
            Err(error) => Err(error.into()),
        };
        let memory = match created {
            Ok(memory) => memory,
            Err(error) => {
                // It may be what filled the disk; the next snapshot does not need it.
                let removed = blocking(move || remove(&written).and(remove(&saved))).await;
                if let Err(error) = removed {
                    tracing::warn!(%error, "a failed snapshot's files are left until the next or the capsule's end");
                }
                return Err(error);
            }
        };
        let to = state.to_owned();
        // The memory is read by its descriptor; nobody else needs its name.
        blocking(move || take_out(&saved, &to).and(remove(&saved)).and(remove(&written))).await?;
        let under = life.under.as_ref().map(File::try_clone).transpose()?;
        Ok(Dump { memory, is_whole: !differs, under })
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Opens a memory file that a jailed process wrote: a plain file of its own and of the right size, or nothing.
fn open(path: &Path, uid: u32, bytes: u64) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != uid || meta.len() != bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a memory file of the guest's size"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_a_plain_file_of_the_user_and_the_size_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("memory"), [1; 64]).unwrap();
        let uid = fs::metadata(path("memory")).unwrap().uid();
        open(&path("memory"), uid, 64).unwrap();
        open(&path("memory"), uid, 65).unwrap_err();
        open(&path("memory"), uid + 1, 64).unwrap_err();
        symlink(path("memory"), path("link")).unwrap();
        open(&path("link"), uid, 64).unwrap_err();
        open(folder.path(), uid, fs::metadata(folder.path()).unwrap().len()).unwrap_err();
        remove(&path("link")).unwrap();
        remove(&path("link")).unwrap();
        assert!(path("memory").exists());
    }

    #[test]
    fn only_the_first_snapshot_of_a_known_life_is_a_difference() {
        let (size, version) = (Size { vcpus: 1, memory_mb: 512 }, Version::parse("1.12.1").unwrap());
        let life = Life::new(size, version, true, None);
        assert!(life.begin(), "nothing was forgotten yet");
        assert!(!life.begin() && !life.begin());
        assert!(!Life::unknown(size, version, true).begin());
    }

    #[test]
    fn a_log_that_is_known_to_be_wrong_is_not_used() {
        let size = |memory_mb| Size { vcpus: 1, memory_mb };
        let can_differ = |text: &str, memory_mb, holes| {
            Life::new(size(memory_mb), Version::parse(text).unwrap(), holes, None).can_differ
        };
        assert!(can_differ("1.12.1", 3072, true) && !can_differ("1.12.1", 4096, true));
        assert!(can_differ("1.15.0", 4096, true) && !can_differ("1.15.0", 4096, false));
    }
}
