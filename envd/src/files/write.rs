//! A file made or replaced as a whole: written beside its place, then renamed.

use super::{FileError, entry::Entry, tree, worker::Actor};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    ffi::OsString,
    fs::{self, File, Metadata, Permissions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    },
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;

/// Begins the name of a file that is being written.
pub const TEMPORARY_PREFIX: &str = ".hearth-";
/// Zeros up to a multiple of this are left out of the file: it reads the same, and a block of nothing else is a hole.
const HOLE_BYTES: usize = 4096;
static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
/// How long a pipe or device may take no bytes.
const TAKE_LIMIT: Duration = Duration::from_secs(10);
/// Links on the way to a file.
const LINKS_MAX: usize = 40;
const NEW_MODE: u32 = 0o666;
const PERMISSION_BITS: u32 = 0o7777;
const SET_ID_BITS: u32 = 0o6000;

/// What a caller sends after the name.
#[derive(Debug)]
pub enum Part {
    /// Bytes.
    Data(Vec<u8>),
    /// The stream ended in order. Without it nothing is changed.
    End,
}

/// Where the bytes come from.
pub type Source = mpsc::Receiver<Part>;

/// Makes or replaces the file at `path`. `mode` is for a new one. Pipes and devices are written to as they are.
pub fn write(actor: &Actor, path: &Path, mode: Option<u32>, source: &mut Source) -> Result<Entry, FileError> {
    let place = follow(path)?;
    let existing = match fs::metadata(&place) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(FileError::Kind { path: path.to_owned(), problem: "is a directory" });
        }
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(FileError::io(path)(error)),
    };
    match existing {
        Some(metadata) if !metadata.is_file() => special(&place, source)?,
        existing => replace(actor, &place, existing, mode, source)?,
    }
    Entry::at(path, &actor.names)
}

/// Where a file is or will be: behind all links, also those that lead nowhere yet.
fn follow(path: &Path) -> Result<PathBuf, FileError> {
    let mut place = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&place) {
            Ok(target) => place = place.parent().unwrap_or(Path::new("/")).join(target),
            // No link, or nothing.
            Err(_) => return Ok(place),
        }
    }
    Err(FileError::io(path)(nix::Error::ELOOP.into()))
}

fn replace(
    actor: &Actor,
    place: &Path,
    existing: Option<Metadata>,
    mode: Option<u32>,
    source: &mut Source,
) -> Result<(), FileError> {
    let error = FileError::io(place);
    let parent = place.parent().unwrap_or(Path::new("/"));
    if existing.is_some() {
        may_write(place)?;
    } else {
        tree::make_parents(parent)?;
    }
    // A new file without a mode gets it from the umask at once; others are closed until they are whole.
    let first = if existing.is_none() && mode.is_none() { NEW_MODE } else { 0o600 };
    let temporary = Temporary::make(parent, first).map_err(&error)?;
    let size = copy(&temporary.file, place, source)?.ok_or(FileError::BrokenOff)?;
    temporary.file.set_len(size).map_err(&error)?;
    if let Some(existing) = existing {
        keep(actor, &temporary.file, &existing).map_err(&error)?;
    } else if let Some(mode) = mode {
        let permissions = Permissions::from_mode(mode & PERMISSION_BITS);
        temporary.file.set_permissions(permissions).map_err(&error)?;
    }
    temporary.rename(place).map_err(&error)
}

/// Whoever may not write a file may not replace it either, even if the directory is theirs.
fn may_write(place: &Path) -> Result<(), FileError> {
    match File::options().write(true).custom_flags(libc::O_NONBLOCK).open(place) {
        // A program that runs is replaced by another file.
        Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => Ok(()),
        opened => opened.map(drop).map_err(FileError::io(place)),
    }
}

/// Gives the file the owner and the mode of the one that it replaces.
fn keep(actor: &Actor, file: &File, existing: &Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (existing.uid(), existing.gid()) {
        actor.as_root(|| fchown(file, Some(existing.uid()), Some(existing.gid())))?;
    }
    // As the kernel does when somebody else writes to a file that runs with its owner's rights.
    let lost = if actor.user.uid == 0 { 0 } else { SET_ID_BITS };
    let permissions = Permissions::from_mode(existing.mode() & PERMISSION_BITS & !lost);
    actor.as_root(|| file.set_permissions(permissions))
}

/// Writes what comes; its size, or none when it broke off.
fn copy(file: &File, place: &Path, source: &mut Source) -> Result<Option<u64>, FileError> {
    let mut at = 0;
    loop {
        match source.blocking_recv() {
            None => return Ok(None),
            Some(Part::End) => return Ok(Some(at)),
            Some(Part::Data(bytes)) => {
                write_sparse(file, at, &bytes).map_err(FileError::io(place))?;
                at += bytes.len() as u64;
            }
        }
    }
}

/// Writes all but blocks of zeros.
fn write_sparse(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut from = 0;
    while from < bytes.len() {
        let mut end = from;
        while end < bytes.len() {
            let block = block(at + end as u64, &bytes[end..]);
            if is_hole(block) {
                break;
            }
            end += block.len();
        }
        file.write_all_at(&bytes[from..end], at + from as u64)?;
        from = end;
        while from < bytes.len() {
            let block = block(at + from as u64, &bytes[from..]);
            if !is_hole(block) {
                break;
            }
            from += block.len();
        }
    }
    Ok(())
}

/// (pure) The bytes up to the next boundary between blocks.
fn block(at: u64, bytes: &[u8]) -> &[u8] {
    let begun = usize::try_from(at % HOLE_BYTES as u64).unwrap_or_default();
    &bytes[..bytes.len().min(HOLE_BYTES - begun)]
}

fn is_hole(block: &[u8]) -> bool {
    *block == ZEROS[..block.len()]
}

/// Writes to a pipe or device, each part within a bounded time.
fn special(place: &Path, source: &mut Source) -> Result<(), FileError> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = match File::options().write(true).custom_flags(flags).open(place) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            let problem = "is a pipe that nobody reads, or a socket";
            return Err(FileError::Kind { path: place.to_owned(), problem });
        }
        opened => opened.map_err(FileError::io(place))?,
    };
    loop {
        let bytes = match source.blocking_recv() {
            None => return Err(FileError::BrokenOff),
            Some(Part::End) => return Ok(()),
            Some(Part::Data(bytes)) => bytes,
        };
        let mut left = &bytes[..];
        while !left.is_empty() {
            match file.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_writable(&file, place)?,
                Err(error) => return Err(FileError::io(place)(error)),
            }
        }
    }
}

fn wait_writable(file: &File, place: &Path) -> Result<(), FileError> {
    let limit = PollTimeout::try_from(TAKE_LIMIT).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], limit) {
        Ok(0) => Err(FileError::Slow(place.to_owned())),
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(errno) => Err(FileError::errno(place)(errno)),
    }
}

/// A file that is removed unless it is renamed.
#[derive(Debug)]
pub struct Temporary {
    /// The file.
    pub file: File,
    path: Option<PathBuf>,
}

impl Temporary {
    fn make(parent: &Path, mode: u32) -> io::Result<Self> {
        let path = temporary_path(parent)?;
        let file = File::options().write(true).create_new(true).mode(mode).open(&path)?;
        Ok(Self { file, path: Some(path) })
    }

    fn rename(mut self, place: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, place)?;
            self.path = None;
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What cannot be removed is the user's, in the user's own directory.
            let _ = fs::remove_file(path);
        }
    }
}

/// A name in `parent` that nobody has.
pub fn temporary_path(parent: &Path) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)?;
    Ok(parent.join(OsString::from(format!("{TEMPORARY_PREFIX}{}", hex::encode(random)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_become_holes_and_everything_reads_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut expected = vec![0; 1 << 20];
        for (at, byte) in [(0, 1), (4095, 2), (8192, 3), (500_000, 4), ((1 << 20) - 1, 5)] {
            expected[at] = byte;
        }
        for step in [1 << 20, 4096, 10_000, 777] {
            let path = folder.path().join(step.to_string());
            let file = File::create_new(&path).unwrap();
            let mut at = 0;
            for chunk in expected.chunks(step) {
                write_sparse(&file, at, chunk).unwrap();
                at += chunk.len() as u64;
            }
            file.set_len(at).unwrap();
            assert!(fs::read(&path).unwrap() == expected, "{step}");
            assert!(file.metadata().unwrap().blocks() < 200, "{step}");
        }
    }
}
