//! A directory that is watched, so that it need not be listed again while nothing in it changes.
//!
//! inotify(7) tells of files that are made, written through a descriptor, renamed, removed or changed in their
//! attributes. It does not tell of writes through a mapping of a file that was made earlier: these show at the next
//! change of anything else.

use super::{
    artifacts::{Listing, changed},
    as_user,
};
use crate::config::User;
use hearth_proto::wire::run::Artifact;
use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use std::path::{Path, PathBuf};

/// Directories below a watched one; a larger tree is listed for each run.
const FOLDERS_MAX: usize = 512;

const CHANGES: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// A listing of a directory, and whether it still holds.
#[derive(Debug)]
pub(crate) struct Watched {
    root: PathBuf,
    listing: Listing,
    /// `None`: the tree is too large, or the kernel has no watch to give.
    inotify: Option<Inotify>,
}

impl Watched {
    /// Lists `root` with the user's rights and watches it from before that on. `None` when there is no thread for it.
    pub(crate) async fn start(user: Option<&User>, root: PathBuf) -> Option<Self> {
        as_user(user, move || Self::of(root)).await.ok()
    }

    fn of(root: PathBuf) -> Self {
        let mut inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok();
        let mut left = FOLDERS_MAX;
        let listing = Listing::of(&root, |folder| {
            let added = inotify.as_ref().is_some_and(|inotify| inotify.add_watch(folder, CHANGES).is_ok());
            left = left.saturating_sub(1);
            if !added || left == 0 {
                inotify = None;
            }
        });
        let inotify = inotify.filter(|_| listing.is_whole());
        Self { root, listing, inotify }
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Does the listing hold for a run in `cwd`?
    pub(crate) fn is_current(&self, cwd: &Path) -> bool {
        self.root == cwd && self.is_quiet()
    }

    /// Has nothing changed since the listing? Takes the events that wait, so a `false` is told once.
    pub(crate) fn is_quiet(&self) -> bool {
        // Any event, also that some were lost, ends the listing's worth.
        self.inotify.as_ref().is_some_and(|inotify| matches!(inotify.read_events(), Err(Errno::EAGAIN)))
    }

    /// What changed since the listing, and a new one.
    pub(crate) async fn changes(self, user: Option<&User>) -> (Vec<Artifact>, Option<Self>) {
        let done = as_user(user, move || {
            let next = Self::of(self.root);
            (changed(&next.root, &next.listing, &self.listing), Some(next))
        });
        done.await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_quiet_directory_is_told_from_a_changed_one() {
        let folder = tempfile::tempdir().unwrap();
        let sub = folder.path().join("sub");
        fs::create_dir(&sub).unwrap();
        type Change = fn(&Path);
        let changes: [(&str, Change); 6] = [
            ("made", |sub| fs::write(sub.join("a"), "1").unwrap()),
            ("written", |sub| fs::write(sub.join("a"), "22").unwrap()),
            ("renamed", |sub| fs::rename(sub.join("a"), sub.join("b")).unwrap()),
            ("attributes", |sub| {
                fs::File::open(sub.join("b")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap()
            }),
            ("removed", |sub| fs::remove_file(sub.join("b")).unwrap()),
            ("folder made", |sub| fs::create_dir(sub.join("c")).unwrap()),
        ];
        for (name, change) in changes {
            let watched = Watched::of(folder.path().to_owned());
            assert!(watched.is_current(folder.path()) && watched.is_quiet(), "before: {name}");
            change(&sub);
            assert!(!watched.is_quiet(), "{name}");
        }
        let watched = Watched::of(folder.path().to_owned());
        assert!(!watched.is_current(&sub), "another directory");
        fs::read_dir(&sub).unwrap().for_each(drop);
        fs::metadata(&sub).unwrap();
        assert!(watched.is_quiet(), "looking changes nothing");
    }

    #[test]
    fn a_tree_that_cannot_be_watched_is_never_quiet() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..FOLDERS_MAX {
            fs::create_dir(folder.path().join(number.to_string())).unwrap();
        }
        let watched = Watched::of(folder.path().to_owned());
        assert!(!watched.is_quiet());
        assert!(!Watched::of(folder.path().join("nowhere")).is_quiet());
    }

    #[tokio::test]
    async fn changes_are_found_once_and_the_next_listing_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let watched = Watched::start(None, folder.path().to_owned()).await.unwrap();
        fs::create_dir(folder.path().join("new")).unwrap();
        fs::write(folder.path().join("new/a.txt"), "1").unwrap();
        let (found, next) = watched.changes(None).await;
        assert_eq!(found.iter().map(|artifact| artifact.path.as_str()).collect::<Vec<_>>(), ["new/a.txt"]);
        let next = next.unwrap();
        assert!(next.is_quiet());
        fs::write(folder.path().join("new/b.txt"), "1").unwrap();
        assert!(!next.is_quiet());
    }
}
