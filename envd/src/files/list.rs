//! Directories, level by level.

use super::{
    FileError,
    entry::{Entry, Kind},
    worker::{Actor, Parts},
};
use std::{fs, mem, path::Path};

/// Entries of one answer.
const ENTRIES_MAX: usize = 500_000;
/// Paths held at once, in bytes: a level and the directories of the next.
const PATH_BYTES_MAX: usize = 64 << 20;
/// Entries sent together.
const BATCH: usize = 256;

/// Sends what is below `top`, down to `depth`, by path within a level. What vanishes meanwhile is left out, and so is
/// what is in a directory below `top` that may not be read.
pub fn list(actor: &Actor, top: &Path, depth: u32, parts: &Parts<Vec<Entry>>) -> Result<(), FileError> {
    let mut directories = vec![top.to_owned()];
    let (mut batch, mut count) = (Vec::with_capacity(BATCH), 0);
    for level in 0..depth {
        let (mut paths, mut bytes) = (Vec::new(), 0);
        for directory in mem::take(&mut directories) {
            let entries = match fs::read_dir(&directory) {
                Err(error) if level == 0 => return Err(FileError::io(top)(error)),
                Err(_) => continue,
                Ok(entries) => entries,
            };
            for entry in entries {
                let Ok(entry) = entry else { break };
                let path = entry.path();
                bytes += path.as_os_str().len();
                count += 1;
                if ENTRIES_MAX < count || PATH_BYTES_MAX < bytes {
                    send(&mut batch, parts)?;
                    return Err(FileError::TooMany("path: too many entries below it"));
                }
                paths.push(path);
            }
        }
        paths.sort_unstable_by(|one, other| one.as_os_str().cmp(other.as_os_str()));
        for path in paths {
            let Ok(entry) = Entry::at(&path, &actor.names) else { continue };
            if entry.kind == Kind::Directory && entry.symlink_target.is_none() {
                directories.push(path);
            }
            batch.push(entry);
            if batch.len() == BATCH {
                send(&mut batch, parts)?;
            }
        }
    }
    send(&mut batch, parts)
}

fn send(batch: &mut Vec<Entry>, parts: &Parts<Vec<Entry>>) -> Result<(), FileError> {
    if batch.is_empty() { Ok(()) } else { parts.send(mem::take(batch)) }
}
