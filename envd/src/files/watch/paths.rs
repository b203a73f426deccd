//! Which watch stands for which directory.

use crate::files::FileError;
use nix::sys::inotify::{AddWatchFlags, Inotify, WatchDescriptor};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// Directories of one watch: the kernel keeps about a kilobyte for each.
const DIRECTORIES_MAX: usize = 8192;

/// The watched directories of one inotify instance.
pub struct Paths<'a> {
    inotify: &'a Inotify,
    by_watch: HashMap<WatchDescriptor, PathBuf>,
    top: WatchDescriptor,
    recursive: bool,
    full: bool,
}

impl<'a> Paths<'a> {
    /// Watches `top`, and with `recursive` every directory below it.
    pub fn new(inotify: &'a Inotify, top: &Path, recursive: bool) -> Result<Self, FileError> {
        let watch = inotify.add_watch(top, events()).map_err(FileError::errno(top))?;
        let by_watch = HashMap::from([(watch, top.to_owned())]);
        let mut paths = Self { inotify, by_watch, top: watch, recursive, full: false };
        if recursive {
            paths.walk(top);
            if paths.full {
                return Err(FileError::TooMany("path: too many directories below it to be watched"));
            }
        }
        Ok(paths)
    }

    /// The path of a watch.
    pub fn of(&self, watch: WatchDescriptor) -> Option<PathBuf> {
        self.by_watch.get(&watch).cloned()
    }

    /// Whether a watch is that of the path that was asked for.
    pub fn is_top(&self, watch: WatchDescriptor) -> bool {
        watch == self.top
    }

    /// Watches a new directory and what is below it, where everything is watched; returns what was found in it.
    pub fn add_below(&mut self, directory: &Path) -> Vec<(PathBuf, bool)> {
        if !self.recursive {
            return Vec::new();
        }
        self.add(directory);
        self.walk(directory)
    }

    /// Whether directories had to be left out since the last question.
    pub fn take_full(&mut self) -> bool {
        std::mem::take(&mut self.full)
    }

    /// A directory has another path.
    pub fn rename(&mut self, from: &Path, to: &Path) {
        for path in self.by_watch.values_mut() {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            }
        }
    }

    /// A directory is gone from here.
    pub fn forget(&mut self, gone: &Path) {
        let inotify = self.inotify;
        self.by_watch.retain(|watch, path| {
            let is_gone = path.starts_with(gone);
            if is_gone {
                // The kernel may have removed it already.
                let _ = inotify.rm_watch(*watch);
            }
            !is_gone
        });
    }

    fn add(&mut self, directory: &Path) -> bool {
        if DIRECTORIES_MAX <= self.by_watch.len() {
            self.full = true;
            return false;
        }
        let flags = events() | AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        match self.inotify.add_watch(directory, flags) {
            Ok(watch) => {
                self.by_watch.insert(watch, directory.to_owned());
                true
            }
            Err(nix::Error::ENOSPC | nix::Error::ENOMEM) => {
                self.full = true;
                false
            }
            // It vanished, or may not be read.
            Err(_) => false,
        }
    }

    fn walk(&mut self, top: &Path) -> Vec<(PathBuf, bool)> {
        let (mut found, mut waiting) = (Vec::new(), vec![top.to_owned()]);
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().map_while(Result::ok) {
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let path = entry.path();
                if is_directory && self.add(&path) {
                    waiting.push(path.clone());
                }
                if found.len() < DIRECTORIES_MAX {
                    found.push((path, is_directory));
                }
            }
        }
        found
    }
}

fn events() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
}
