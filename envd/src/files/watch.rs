//! Changes below a path, by inotify, through a bounded queue that says when something was lost.

mod paths;

use super::{FileError, Files, worker::Actor, write::TEMPORARY_PREFIX};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent},
};
use paths::Paths;
use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::mpsc;

/// Events that wait for their reader.
const QUEUE_MAX: usize = 1024;
/// How long the second half of a rename may lag behind the first, in milliseconds.
const RENAME_MS: u16 = 10;
/// Letters of a temporary name behind its prefix.
const TEMPORARY_LETTERS: usize = 16;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// First: from now on changes are seen.
    Watching,
    /// Made, or moved here from elsewhere.
    Created,
    /// Written.
    Modified,
    /// Removed, or moved elsewhere.
    Removed,
    /// Has another path now.
    Renamed,
    /// Mode, owner or times.
    Attributes,
    /// Events were lost before this one.
    Lost,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// To what.
    pub path: PathBuf,
    /// What it is called now, when renamed.
    pub new_path: PathBuf,
    /// Whether it is a directory.
    pub directory: bool,
}

impl Event {
    fn of(kind: Kind, path: &Path, directory: bool) -> Self {
        Self { kind, path: path.to_owned(), new_path: PathBuf::new(), directory }
    }
}

/// A watch under way. Dropped, it ends.
#[derive(Debug)]
pub struct Watch {
    queue: mpsc::Receiver<Result<Event, FileError>>,
    lost: Arc<AtomicBool>,
    /// Its other end tells the thread.
    _stop: OwnedFd,
}

impl Watch {
    /// The next change; `None` when what was watched is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Event, FileError>> {
        match self.queue.try_recv() {
            Ok(event) => return Some(event),
            // Whatever is lost was lost after all that waited.
            Err(mpsc::error::TryRecvError::Empty) if self.lost.swap(false, Ordering::AcqRel) => {
                return Some(Ok(Event::of(Kind::Lost, Path::new(""), false)));
            }
            Err(_) => {}
        }
        self.queue.recv().await
    }
}

impl Files {
    /// Watches what `path` names for `user`; with `recursive` everything below it.
    pub fn changes(
        &self,
        user: String,
        path: impl FnOnce(&Actor) -> Result<PathBuf, FileError> + Send + 'static,
        recursive: bool,
    ) -> Result<Watch, FileError> {
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let (stopped, stop) = io::pipe().map_err(FileError::Thread)?;
        let lost = Arc::new(AtomicBool::new(false));
        let output = Output { queue: sender, lost: Arc::clone(&lost), last: None };
        let stopped = OwnedFd::from(stopped);
        self.watch(user, move |actor| {
            let mut output = output;
            let followed = actor.and_then(|actor| {
                let path = path(&actor)?;
                follow(&path, recursive, &stopped, &mut output)
            });
            if let Err(error) = followed {
                // Its reader may have gone.
                let _ = output.queue.blocking_send(Err(error));
            }
        })?;
        Ok(Watch { queue, lost, _stop: stop.into() })
    }
}

/// Where events go.
struct Output {
    queue: mpsc::Sender<Result<Event, FileError>>,
    lost: Arc<AtomicBool>,
    last: Option<PathBuf>,
}

impl Output {
    fn send(&mut self, event: Event) {
        // Many writes to one file are one change as long as nobody has looked.
        let again = event.kind == Kind::Modified && self.last.as_deref() == Some(&event.path);
        if again && self.queue.capacity() < QUEUE_MAX {
            return;
        }
        self.last = (event.kind == Kind::Modified).then(|| event.path.clone());
        if self.lost.load(Ordering::Acquire) {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(Ok(event)) {
            self.lose();
        }
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        // The reader may wait already, with nothing left to wake it: an event of this kind does, if there is room.
        let event = Event::of(Kind::Lost, Path::new(""), false);
        if self.queue.capacity() == QUEUE_MAX && self.lost.swap(false, Ordering::AcqRel) {
            let _ = self.queue.try_send(Ok(event));
        }
    }
}

/// A move whose second half may come.
struct Half {
    cookie: u32,
    path: PathBuf,
    directory: bool,
}

fn follow(top: &Path, recursive: bool, stopped: &OwnedFd, output: &mut Output) -> Result<(), FileError> {
    let error = FileError::errno(top);
    let directory = fs::metadata(top).map_err(FileError::io(top))?.is_dir();
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(&error)?;
    let mut paths = Paths::new(&inotify, top, recursive && directory)?;
    output.send(Event::of(Kind::Watching, top, directory));
    let mut half = None;
    loop {
        let wait = if half.is_some() { PollTimeout::from(RENAME_MS) } else { PollTimeout::NONE };
        let mut ready = [
            PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, wait) {
            Ok(0) => finish(half.take(), &mut paths, output),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(error(errno)),
        }
        if ready[1].revents().is_some_and(|events| !events.is_empty()) {
            return Ok(());
        }
        let events = match inotify.read_events() {
            Ok(events) => events,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => continue,
            Err(errno) => return Err(error(errno)),
        };
        for event in events {
            if !take(event, &mut half, &mut paths, output) {
                return Ok(());
            }
        }
    }
}

/// A move that had no second half led elsewhere.
fn finish(half: Option<Half>, paths: &mut Paths<'_>, output: &mut Output) {
    if let Some(Half { path, directory, .. }) = half {
        paths.forget(&path);
        if !is_temporary(path.file_name()) {
            output.send(Event::of(Kind::Removed, &path, directory));
        }
    }
}

/// Passes one event on; false when the watch is over.
fn take(event: InotifyEvent, half: &mut Option<Half>, paths: &mut Paths<'_>, output: &mut Output) -> bool {
    let mask = event.mask;
    let directory = mask.contains(AddWatchFlags::IN_ISDIR);
    let pairs = mask.contains(AddWatchFlags::IN_MOVED_TO)
        && half.as_ref().is_some_and(|half| half.cookie == event.cookie);
    if !pairs {
        finish(half.take(), paths, output);
    }
    if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
        output.lose();
        return true;
    }
    let Some(parent) = paths.of(event.wd) else { return true };
    let top = paths.is_top(event.wd);
    let Some(name) = event.name else { return own(mask, &parent, top, paths, output) };
    let (path, temporary) = (parent.join(&name), is_temporary(Some(&name)));
    if mask.contains(AddWatchFlags::IN_MOVED_FROM) {
        *half = Some(Half { cookie: event.cookie, path, directory });
    } else if mask.contains(AddWatchFlags::IN_MOVED_TO) {
        moved_here(half.take(), &path, directory, paths, output);
    } else if temporary {
        // A file on its way to its name.
    } else if mask.contains(AddWatchFlags::IN_CREATE) {
        output.send(Event::of(Kind::Created, &path, directory));
        if directory {
            // What was made in it before it was watched.
            for (found, directory) in paths.add_below(&path) {
                output.send(Event::of(Kind::Created, &found, directory));
            }
        }
    } else if mask.contains(AddWatchFlags::IN_DELETE) {
        output.send(Event::of(Kind::Removed, &path, directory));
    } else if mask.contains(AddWatchFlags::IN_MODIFY) {
        output.send(Event::of(Kind::Modified, &path, directory));
    } else if mask.contains(AddWatchFlags::IN_ATTRIB) {
        output.send(Event::of(Kind::Attributes, &path, directory));
    }
    if paths.take_full() {
        output.lose();
    }
    true
}

fn moved_here(half: Option<Half>, path: &Path, directory: bool, paths: &mut Paths<'_>, output: &mut Output) {
    match half {
        Some(Half { path: from, .. }) if !is_temporary(from.file_name()) => {
            paths.rename(&from, path);
            output.send(Event { new_path: path.to_owned(), ..Event::of(Kind::Renamed, &from, directory) });
        }
        // From elsewhere, or a file that has got its name.
        _ => {
            output.send(Event::of(Kind::Created, path, directory));
            if directory {
                paths.add_below(path);
            }
        }
    }
}

/// What happened to a watched thing itself; for those below the top their directories tell it as well.
fn own(mask: AddWatchFlags, path: &Path, top: bool, paths: &mut Paths<'_>, output: &mut Output) -> bool {
    if mask.contains(AddWatchFlags::IN_IGNORED) {
        paths.forget(path);
        return !top;
    }
    if !top {
        return true;
    }
    let directory = mask.contains(AddWatchFlags::IN_ISDIR);
    if mask.intersects(AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF) {
        output.send(Event::of(Kind::Removed, path, directory));
        return false;
    }
    if mask.contains(AddWatchFlags::IN_MODIFY) {
        output.send(Event::of(Kind::Modified, path, directory));
    } else if mask.contains(AddWatchFlags::IN_ATTRIB) {
        output.send(Event::of(Kind::Attributes, path, directory));
    }
    true
}

fn is_temporary(name: Option<&OsStr>) -> bool {
    let rest = name.and_then(|name| name.as_bytes().strip_prefix(TEMPORARY_PREFIX.as_bytes()));
    rest.is_some_and(|rest| rest.len() == TEMPORARY_LETTERS && rest.iter().all(u8::is_ascii_hexdigit))
}
