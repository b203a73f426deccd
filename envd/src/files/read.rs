//! A file's bytes, holes without the disk.

use super::{
    FileError,
    entry::Entry,
    worker::{Actor, Parts},
};
use nix::{
    sys::statfs::{self, fstatfs},
    unistd::{Whence, lseek},
};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

/// Bytes of one part.
pub const CHUNK_BYTES: usize = 256 << 10;
/// What is read of a file whose size the kernel does not know before (/proc and the like).
const UNSIZED_BYTES_MAX: u64 = 16 << 20;

/// A part of an answer.
#[derive(Debug)]
pub enum Part {
    /// First.
    Entry(Entry),
    /// Then.
    Data(Vec<u8>),
}

/// Sends what is in the file from `offset` on, `length` bytes or (0) up to where it ended when it was opened.
pub fn read(
    actor: &Actor,
    path: &Path,
    offset: u64,
    length: u64,
    parts: &Parts<Part>,
) -> Result<(), FileError> {
    let error = FileError::io(path);
    let file = open(path)?;
    let size = file.metadata().map_err(&error)?.len();
    parts.send(Part::Entry(Entry::at(path, &actor.names)?))?;
    let wanted = if length == 0 { u64::MAX } else { length };
    if size == 0 && is_generated(&file) {
        return generated(file, path, offset, wanted, parts);
    }
    let end = size.min(offset.saturating_add(wanted));
    let mut at = offset;
    while at < end {
        let data = next_data(&file, at, end).map_err(|error| shrank(path, error))?;
        while at < data {
            // Zeroed memory that nobody touches costs nothing until it is sent.
            let chunk = vec![0; chunk(data - at)];
            at += chunk.len() as u64;
            parts.send(Part::Data(chunk))?;
        }
        let hole = next_hole(&file, at, end).map_err(&error)?;
        while at < hole {
            let mut bytes = vec![0; chunk(hole - at)];
            let count = retry(|| file.read_at(&mut bytes, at)).map_err(&error)?;
            if count == 0 {
                return Err(FileError::Shrank(path.to_owned()));
            }
            bytes.truncate(count);
            at += count as u64;
            parts.send(Part::Data(bytes))?;
        }
    }
    Ok(())
}

/// Opens a regular file. Nothing else is opened, so that no pipe is waited for and no device acts.
fn open(path: &Path) -> Result<File, FileError> {
    let check = |metadata: fs::Metadata| {
        let problem = if metadata.is_dir() {
            "is a directory"
        } else if metadata.is_file() {
            return Ok(());
        } else {
            "is no regular file"
        };
        Err(FileError::Kind { path: path.to_owned(), problem })
    };
    check(fs::metadata(path).map_err(FileError::io(path))?)?;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(FileError::io(path))?;
    check(file.metadata().map_err(FileError::io(path))?)?;
    Ok(file)
}

/// Whether the kernel makes the content up as it is read, so that its size says nothing.
fn is_generated(file: &File) -> bool {
    let made_up = [
        statfs::PROC_SUPER_MAGIC,
        statfs::SYSFS_MAGIC,
        statfs::CGROUP2_SUPER_MAGIC,
        statfs::DEBUGFS_MAGIC,
        statfs::TRACEFS_MAGIC,
    ];
    fstatfs(file).is_ok_and(|stat| made_up.contains(&stat.filesystem_type()))
}

fn generated(
    mut file: File,
    path: &Path,
    offset: u64,
    wanted: u64,
    parts: &Parts<Part>,
) -> Result<(), FileError> {
    let mut skip = offset;
    let mut left = wanted.min(UNSIZED_BYTES_MAX);
    while 0 < left {
        let mut bytes = vec![0; 64 << 10];
        let count = match retry(|| file.read(&mut bytes)) {
            Ok(0) => break,
            Ok(count) => count,
            // What would wait for something to happen has ended for us.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(FileError::io(path)(error)),
        };
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(count);
        skip -= skipped as u64;
        bytes.truncate(count);
        bytes.drain(..skipped);
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= bytes.len() as u64;
        if !bytes.is_empty() {
            parts.send(Part::Data(bytes))?;
        } else if UNSIZED_BYTES_MAX < offset {
            break;
        }
    }
    Ok(())
}

/// What an error of [`next_data`] means.
pub fn shrank(path: &Path, error: io::Error) -> FileError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => FileError::Shrank(path.to_owned()),
        _ => FileError::io(path)(error),
    }
}

/// Where data begin at `at` or after it, at most `end`; `UnexpectedEof` when the file does not reach so far any more. A
/// file system that knows no holes has data everywhere.
pub fn next_data(file: &File, at: u64, end: u64) -> io::Result<u64> {
    match seek(file, at, Whence::SeekData) {
        Ok(data) => Ok(data.min(end)),
        // A hole up to the end, or the end.
        Err(nix::Error::ENXIO) if end <= file.metadata()?.len() => Ok(end),
        Err(nix::Error::ENXIO) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(nix::Error::EINVAL) => Ok(at),
        Err(errno) => Err(errno.into()),
    }
}

/// Where the data at `at` end, at most `end`.
pub fn next_hole(file: &File, at: u64, end: u64) -> io::Result<u64> {
    match seek(file, at, Whence::SeekHole) {
        Ok(hole) => Ok(hole.min(end)),
        // It became shorter; reading tells.
        Err(nix::Error::ENXIO | nix::Error::EINVAL) => Ok(end),
        Err(errno) => Err(errno.into()),
    }
}

fn seek(file: &File, at: u64, whence: Whence) -> nix::Result<u64> {
    let at = i64::try_from(at).map_err(|_| nix::Error::ENXIO)?;
    lseek(file, at, whence).map(|found| u64::try_from(found).unwrap_or_default())
}

fn chunk(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES)
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
