//! Finds the capsule's disks by what is on them: their order on the bus differs between VMMs.

use nix::{
    poll::{PollFd, PollFlags, PollTimeout},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Longest wait for the disks after their drivers are loaded.
const WAIT_LIMIT: Duration = Duration::from_secs(20);
/// Bytes from a disk's beginning that hold every magic number looked for.
const HEAD_BYTES: usize = 2048;

/// The capsule's disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disks {
    /// The template's base, read-only, EROFS.
    pub base: PathBuf,
    /// The capsule's own layer, ext4.
    pub upper: PathBuf,
}

/// Why the disks were not found.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// /dev cannot be watched or read.
    #[error("/dev cannot be searched for disks")]
    Search(#[from] io::Error),
    /// No disk holds what is needed.
    #[error("no {0} disk among /dev/vd* within {WAIT_LIMIT:?}")]
    Missing(&'static str),
}

/// What is on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Base,
    Upper,
    Other,
}

/// Waits for both disks.
pub fn wait() -> Result<Disks, DiskError> {
    // The watch begins before the first look, so that nothing that appears between them is missed.
    let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(io::Error::from)?;
    watch.add_watch("/dev", AddWatchFlags::IN_CREATE).map_err(io::Error::from)?;
    let deadline = Instant::now() + WAIT_LIMIT;
    loop {
        let (base, upper) = look()?;
        let missing = match (base, upper) {
            (Some(base), Some(upper)) => return Ok(Disks { base, upper }),
            (None, Some(_)) => "base (EROFS)",
            (Some(_), None) => "upper (ext4)",
            (None, None) => "base (EROFS) and no upper (ext4)",
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(DiskError::Missing(missing));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        nix::poll::poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&watch), PollFlags::POLLIN)], timeout)
            .map_err(io::Error::from)?;
        // What appeared is found by looking; the events only say when.
        let _ = watch.read_events();
    }
}

/// The capsule's own layer, if it is there now.
pub fn upper() -> io::Result<PathBuf> {
    look()?.1.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// The first disk without any file system that we know.
pub fn blank() -> io::Result<PathBuf> {
    let mut names: Vec<_> = fs::read_dir("/dev")?.collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    let disks = names.into_iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("vd"));
    disks
        .map(|entry| entry.path())
        .find(|path| content(path) == Content::Other)
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

fn look() -> io::Result<(Option<PathBuf>, Option<PathBuf>)> {
    let mut names: Vec<_> = fs::read_dir("/dev")?.collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    let (mut base, mut upper) = (None, None);
    for entry in names {
        if !entry.file_name().to_string_lossy().starts_with("vd") {
            continue;
        }
        let slot = match content(&entry.path()) {
            Content::Base => &mut base,
            Content::Upper => &mut upper,
            Content::Other => continue,
        };
        slot.get_or_insert(entry.path());
    }
    Ok((base, upper))
}

fn content(path: &Path) -> Content {
    let mut head = [0; HEAD_BYTES];
    // A disk too small to read or not ready yet is looked at again with the next event.
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut head, 0));
    read.map_or(Content::Other, |()| identify(&head))
}

/// (pure) Tells file systems apart by magic number: EROFS 0xE0F5E1E2 at 1024, ext4 0xEF53 at 1080, little-endian
/// (Linux: fs/erofs/erofs_fs.h, Documentation/filesystems/ext4/super.rst).
fn identify(head: &[u8; HEAD_BYTES]) -> Content {
    if head[1024..1028] == 0xE0F5_E1E2_u32.to_le_bytes() {
        Content::Base
    } else if head[1080..1082] == 0xEF53_u16.to_le_bytes() {
        Content::Upper
    } else {
        Content::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_told_apart_by_magic_number() {
        let mut head = [0; HEAD_BYTES];
        assert_eq!(identify(&head), Content::Other);
        head[1080..1082].copy_from_slice(&[0x53, 0xEF]);
        assert_eq!(identify(&head), Content::Upper);
        head[1024..1028].copy_from_slice(&[0xE2, 0xE1, 0xF5, 0xE0]);
        assert_eq!(identify(&head), Content::Base);
    }
}
