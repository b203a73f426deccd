//! Copies of sparse files: by reflink where the filesystem has it, else hole by hole.

use nix::{
    errno::Errno,
    fcntl::copy_file_range,
    unistd::{Whence, lseek},
};
use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
};

/// Bytes at once where the kernel does not copy by itself.
const COPY_BYTES: usize = 256 << 10;

nix::ioctl_write_int_bad!(
    /// Shares all blocks of another file: ioctl_ficlone(2).
    ficlone,
    libc::FICLONE
);

/// Copies `from` to the new file `to`, keeping holes. Mode 0600. An error leaves no file.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().read(true).write(true).create_new(true).open(to)?;
    let copied = copy_into(&source, &target);
    if copied.is_err() {
        // The error that is returned says more than one of the clean-up.
        let _ = std::fs::remove_file(to);
    }
    copied
}

#[expect(unsafe_code, reason = "the reflink ioctl")]
fn copy_into(source: &File, target: &File) -> io::Result<()> {
    // SAFETY: FICLONE takes two descriptors, both alive.
    match unsafe { ficlone(target.as_raw_fd(), source.as_raw_fd()) } {
        Ok(_) => return Ok(()),
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
                // Two kinds of filesystem, since Linux 5.19.
                Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                    copy_bytes(source, target, from as u64, hole as u64)?;
                    from = hole;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        at = hole;
    }
    Ok(())
}

/// Copies the bytes from `at` to `end` through this process.
fn copy_bytes(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    while at < end {
        let length = usize::try_from(end - at).map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
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

    #[test]
    fn a_copy_to_another_filesystem_is_the_same() {
        let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let (from, to) = (near.path().join("a"), far.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(8 << 20).unwrap();
        let bytes: Vec<u8> = (0..COPY_BYTES + 4096).map(|at| (at % 251) as u8).collect();
        file.write_all_at(&bytes, 4 << 20).unwrap();
        copy(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }
}
