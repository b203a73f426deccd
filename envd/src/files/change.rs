//! Mode, owner and group.

use super::{FileError, worker::Actor};
use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

/// Directories below one that is changed.
const DIRECTORIES_MAX: usize = 200_000;

/// A change; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// A name or a number.
    pub owner: Option<String>,
    /// A name or a number.
    pub group: Option<String>,
    /// Whether it is for everything below as well; links stay.
    pub recursive: bool,
}

struct Ids {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// Changes what is at `path`; of a link, its target.
pub fn change(actor: &Actor, path: &Path, change: &Change) -> Result<(), FileError> {
    let owner = |name: &str| actor.names.user(name).map(|user| user.uid);
    let ids = Ids {
        mode: change.mode.map(|mode| mode & 0o7777),
        uid: change.owner.as_deref().map(|name| id("owner", name, owner)).transpose()?,
        gid: change
            .group
            .as_deref()
            .map(|name| id("group", name, |name| actor.names.gid(name)))
            .transpose()?,
    };
    if !change.recursive || !fs::metadata(path).map_err(FileError::io(path))?.is_dir() {
        return apply(path, &ids);
    }
    let (mut waiting, mut walked) = (vec![path.to_owned()], Vec::new());
    while let Some(directory) = waiting.pop() {
        actor.go_on()?;
        let entries = fs::read_dir(&directory).map_err(FileError::io(&directory))?;
        for entry in entries {
            let entry = entry.map_err(FileError::io(&directory))?;
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if !kind.is_symlink() {
                apply(&entry.path(), &ids)?;
            }
        }
        walked.push(directory);
        if DIRECTORIES_MAX < waiting.len() + walked.len() {
            return Err(FileError::TooMany("path: too many directories below it"));
        }
    }
    // Those below first: the new mode or owner may close a directory to this user.
    walked.iter().rev().try_for_each(|directory| apply(directory, &ids))
}

/// The owner first: it takes set-id bits away.
fn apply(path: &Path, ids: &Ids) -> Result<(), FileError> {
    let error = FileError::io(path);
    if ids.uid.is_some() || ids.gid.is_some() {
        chown(path, ids.uid, ids.gid).map_err(&error)?;
    }
    match ids.mode {
        Some(mode) => fs::set_permissions(path, Permissions::from_mode(mode)).map_err(&error),
        None => Ok(()),
    }
}

fn id(field: &'static str, name: &str, find: impl FnOnce(&str) -> Option<u32>) -> Result<u32, FileError> {
    let number = || name.parse().ok().filter(|id| *id != u32::MAX);
    find(name).or_else(number).ok_or_else(|| {
        let name: String = name.chars().take(64).collect();
        FileError::Invalid { field, problem: format!("there is no {name:?}") }
    })
}
