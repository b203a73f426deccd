//! Moves, also between file systems.

use super::{
    FileError,
    read::{next_data, next_hole, shrank},
    tree,
    worker::Actor,
    write::temporary_path,
};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::stat::{Mode, SFlag, mknod},
};
use std::{
    fs::{self, File, FileTimes, Metadata, Permissions},
    io,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink},
    path::{Path, PathBuf},
};

const COPY_BYTES: usize = 256 << 10;

/// Renames `from` to `to`. What is there is replaced only with `overwrite`, by the rules of rename(2).
pub fn relocate(actor: &Actor, from: &Path, to: &Path, overwrite: bool) -> Result<(), FileError> {
    let source = fs::symlink_metadata(from).map_err(FileError::io(from))?;
    match rename(from, to, overwrite) {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) if !overwrite => Err(FileError::Exists(to.to_owned())),
        Err(Errno::EXDEV) => across(actor, from, &source, to, overwrite),
        Err(Errno::EINVAL) => {
            Err(FileError::Invalid { field: "to", problem: "is below `from`, or no name".to_owned() })
        }
        // Which of the two is missing.
        Err(Errno::ENOENT) => Err(FileError::errno(to)(Errno::ENOENT)),
        Err(errno) => Err(FileError::errno(to)(errno)),
    }
}

fn rename(from: &Path, to: &Path, overwrite: bool) -> nix::Result<()> {
    let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
    renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)
}

/// Copies beside the target, renames there, and then removes what was moved.
fn across(
    actor: &Actor,
    from: &Path,
    source: &Metadata,
    to: &Path,
    overwrite: bool,
) -> Result<(), FileError> {
    // What cannot be replaced is said before anything is copied.
    if let Ok(target) = fs::symlink_metadata(to) {
        let problem = match (source.is_dir(), target.is_dir()) {
            _ if !overwrite => return Err(FileError::Exists(to.to_owned())),
            (true, false) => "is no directory",
            (false, true) => "is a directory",
            _ => "",
        };
        if !problem.is_empty() {
            return Err(FileError::Kind { path: to.to_owned(), problem });
        }
    }
    if let (Ok(above), Ok(target)) = (fs::canonicalize(from), fs::canonicalize(to.parent().unwrap_or(to)))
        && source.is_dir()
        && target.starts_with(&above)
    {
        return Err(FileError::Invalid { field: "to", problem: "is below `from`".to_owned() });
    }
    let parent = to.parent().unwrap_or(Path::new("/"));
    let copy = Copy(temporary_path(parent).map_err(FileError::io(to))?);
    copy_tree(actor, from, &copy.0)?;
    match rename(&copy.0, to, overwrite) {
        Ok(()) => tree::remove(from),
        Err(Errno::EEXIST) if !overwrite => Err(FileError::Exists(to.to_owned())),
        Err(errno) => Err(FileError::errno(to)(errno)),
    }
}

/// A copy that is removed unless it was renamed.
struct Copy(PathBuf);

impl Drop for Copy {
    fn drop(&mut self) {
        // It is not there any more when all went well.
        let _ = tree::remove(&self.0);
    }
}

/// Copies a tree. Directories get their mode and times last, when nothing is made in them any more.
fn copy_tree(actor: &Actor, from: &Path, to: &Path) -> Result<(), FileError> {
    let mut waiting = vec![(from.to_owned(), to.to_owned())];
    let mut directories = Vec::new();
    while let Some((from, to)) = waiting.pop() {
        actor.go_on()?;
        let metadata = fs::symlink_metadata(&from).map_err(FileError::io(&from))?;
        if metadata.is_dir() {
            fs::create_dir(&to).map_err(FileError::io(&to))?;
            for entry in fs::read_dir(&from).map_err(FileError::io(&from))? {
                let entry = entry.map_err(FileError::io(&from))?;
                waiting.push((entry.path(), to.join(entry.file_name())));
            }
            directories.push((to, metadata));
            continue;
        }
        copy_one(actor, &from, &metadata, &to)?;
    }
    for (path, metadata) in directories.iter().rev() {
        dress(actor, path, metadata)?;
    }
    Ok(())
}

fn copy_one(actor: &Actor, from: &Path, metadata: &Metadata, to: &Path) -> Result<(), FileError> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(from).map_err(FileError::io(from))?;
        symlink(target, to).map_err(FileError::io(to))?;
        own(actor, to, metadata).map_err(FileError::io(to))
    } else if kind.is_file() {
        copy_bytes(actor, from, metadata, to)?;
        dress(actor, to, metadata)
    } else {
        let node = if kind.is_fifo() {
            SFlag::S_IFIFO
        } else if kind.is_socket() {
            SFlag::S_IFSOCK
        } else if kind.is_char_device() {
            SFlag::S_IFCHR
        } else {
            SFlag::S_IFBLK
        };
        mknod(to, node, Mode::from_bits_truncate(0o600), metadata.rdev()).map_err(FileError::errno(to))?;
        own(actor, to, metadata).map_err(FileError::io(to))?;
        let permissions = Permissions::from_mode(metadata.mode() & 0o7777);
        fs::set_permissions(to, permissions).map_err(FileError::io(to))
    }
}

/// Copies a file's bytes, holes as holes.
fn copy_bytes(actor: &Actor, from: &Path, metadata: &Metadata, to: &Path) -> Result<(), FileError> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let source = File::options().read(true).custom_flags(flags).open(from).map_err(FileError::io(from))?;
    let target = File::options().write(true).create_new(true).mode(0o600).open(to);
    let target = target.map_err(FileError::io(to))?;
    let size = metadata.len();
    let mut bytes = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < size {
        at = next_data(&source, at, size).map_err(|error| shrank(from, error))?;
        let end = next_hole(&source, at, size).map_err(FileError::io(from))?;
        while at < end {
            actor.go_on()?;
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(COPY_BYTES);
            let count = source.read_at(&mut bytes[..most], at).map_err(FileError::io(from))?;
            if count == 0 {
                return Err(FileError::Shrank(from.to_owned()));
            }
            target.write_all_at(&bytes[..count], at).map_err(FileError::io(to))?;
            at += count as u64;
        }
    }
    target.set_len(size).map_err(FileError::io(to))
}

/// Gives a copy the owner, mode and times of its original.
fn dress(actor: &Actor, path: &Path, metadata: &Metadata) -> Result<(), FileError> {
    let error = FileError::io(path);
    own(actor, path, metadata).map_err(&error)?;
    let permissions = Permissions::from_mode(metadata.mode() & 0o7777);
    fs::set_permissions(path, permissions).map_err(&error)?;
    let (Ok(accessed), Ok(modified)) = (metadata.accessed(), metadata.modified()) else { return Ok(()) };
    let times = FileTimes::new().set_accessed(accessed).set_modified(modified);
    // Only for times, of a file or directory of ours: one that may not be opened keeps today's.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path);
    opened.and_then(|file| file.set_times(times)).or(Ok(()))
}

/// Only root gives files away; what others move becomes theirs, as with mv(1).
fn own(actor: &Actor, path: &Path, metadata: &Metadata) -> io::Result<()> {
    if actor.user.uid == 0 { lchown(path, Some(metadata.uid()), Some(metadata.gid())) } else { Ok(()) }
}
