//! Copies of sparse files: by reflink where the filesystem has it, else hole by hole.

use nix::{
    errno::Errno,
    fcntl::copy_file_range,
    sys::statfs::{BTRFS_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs},
    unistd::{Whence, lseek},
};
use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    time::Instant,
};

/// Bytes read at once where the kernel does not copy for us.
const BUFFER_BYTES: usize = 1 << 20;

nix::ioctl_write_int_bad!(
    /// Shares all blocks of another file: ioctl_ficlone(2).
    ficlone,
    libc::FICLONE
);

/// How a file was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Both have the same blocks until one is written.
    Reflink,
    /// What is not a hole was copied.
    Data,
}

/// Copies `from` to the new file `to`, keeping holes. Mode 0600. An error leaves no file.
pub fn copy(from: &Path, to: &Path) -> io::Result<Method> {
    let start = Instant::now();
    let source = File::open(from)?;
    let target = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(to)?;
    let copied = copy_into(&source, &target);
    match &copied {
        Ok(method) => {
            let method = match method {
                Method::Reflink => "reflink",
                Method::Data => "data",
            };
            metrics::histogram!("hearth_agent_disk_copy_seconds", "method" => method)
                .record(start.elapsed().as_secs_f64());
        }
        Err(_) => {
            // The error that is returned says more than one of the clean-up.
            let _ = std::fs::remove_file(to);
        }
    }
    copied
}

/// Writes what a file has in memory only, if its file system shares blocks: it shares only what it has written, and a
/// copy that is made while a capsule stands still would wait for that. Elsewhere it does nothing.
pub fn settle(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    if matches!(fstatfs(&file)?.filesystem_type(), XFS_SUPER_MAGIC | BTRFS_SUPER_MAGIC) {
        file.sync_data()?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "the reflink ioctl")]
fn copy_into(source: &File, target: &File) -> io::Result<Method> {
    // SAFETY: FICLONE takes two descriptors, both alive.
    match unsafe { ficlone(target.as_raw_fd(), source.as_raw_fd()) } {
        Ok(_) => return Ok(Method::Reflink),
        Err(Errno::EOPNOTSUPP | Errno::EXDEV | Errno::EINVAL | Errno::ENOTTY | Errno::ENOSYS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let end = i64::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut at = 0;
    while at < end {
        let data = match lseek(source, at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let hole = lseek(source, data, Whence::SeekHole)?;
        let (mut from, mut to) = (data, data);
        while from < hole {
            let length = usize::try_from(hole - from).unwrap_or(usize::MAX);
            match copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Ok(_) => {}
                // Between filesystems of different kinds.
                Err(Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                    copy_by_hand(source, target, from as u64..hole as u64)?;
                    break;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        at = hole;
    }
    Ok(Method::Data)
}

fn copy_by_hand(source: &File, target: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        source.read_exact_at(&mut buffer[..length], at)?;
        target.write_all_at(&buffer[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_to_another_kind_of_filesystem_is_the_same() {
        let (folder, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let (from, to) = (folder.path().join("a"), memory.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[7; 3 << 20], 1 << 20).unwrap();
        copy(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 <= 4 << 20);
    }

    #[test]
    fn holes_stay_holes_and_data_stays_data() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", 40 << 20).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(copy(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
