//! What a process wrote, from its first byte on: a bounded ring with absolute offsets, one writer, any number of readers.
//!
//! The writer asks for [`Log::room`] before it reads from the process, so that a reader that lags holds the process up
//! and costs no memory. It does so for a bounded time; then it is cut. Until the first reader has come the log itself
//! waits for one, a moment long: whoever starts a process and attaches at once misses nothing.

mod ring;

use super::Exit;
use ring::Ring;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

/// Which stream bytes were written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Both streams of a terminal.
    Terminal,
}

/// Bytes that a reader may lag behind, also when less is kept.
const LAG_BYTES: usize = 256 << 10;
/// The same when all logs together are over their budget.
const LAG_BYTES_MIN: usize = 64 << 10;
/// Most that one read gives.
const READ_BYTES_MAX: usize = 64 << 10;
/// A reader that holds the process up must take this much before its time is over.
const PROGRESS_BYTES: u64 = 64 << 10;

/// How long a process is held up for readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A reader that does not go on is cut after this.
    pub reader: Duration,
    /// A full log waits for its first reader until this long after the start.
    pub first: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { reader: Duration::from_secs(10), first: Duration::from_secs(3) }
    }
}

/// The memory of all logs of the capsule.
#[derive(Debug, Clone)]
pub struct Budget {
    held: Arc<AtomicUsize>,
    max: usize,
}

impl Budget {
    /// A budget of `max` bytes. Beyond it logs of running processes keep only what readers need.
    pub fn new(max: usize) -> Self {
        Self { held: Arc::default(), max }
    }

    /// Whether more than the share `1/of` of it is taken.
    pub fn is_over(&self, of: usize) -> bool {
        self.max / of < self.held.load(Ordering::Relaxed)
    }
}

/// The output of one process. The owner of the process writes; it alone asks for room.
#[derive(Debug)]
pub struct Log {
    state: Mutex<State>,
    keep: usize,
    budget: Budget,
    /// Marked when there is more to read, or the end.
    news: watch::Sender<()>,
    /// Marked when a reader has taken something, come or gone.
    taken: Notify,
    first_reader: Instant,
    patience: Duration,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    exit: Option<Exit>,
    readers: HashMap<u64, Place>,
    next: u64,
}

/// How far a reader is.
#[derive(Debug)]
struct Place {
    at: u64,
    /// Since when it holds the process up, and where it was then.
    holds: Option<(Instant, u64)>,
    cut: bool,
}

/// Reads a log from a place on.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    id: u64,
    news: watch::Receiver<()>,
    /// Where it ends without waiting for more.
    until: Option<u64>,
    /// Older output is gone.
    pub truncated: bool,
}

/// What a reader is given.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// Bytes.
    Bytes(Source, Vec<u8>),
    /// The end, after all bytes.
    Exit(Exit),
}

/// A reader did not read for too long and held the process up.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the output was not read for too long")]
pub struct Cut;

impl Log {
    /// An empty log that keeps `keep` bytes for readers that come later.
    pub fn new(keep: usize, budget: Budget, patience: Patience) -> Self {
        let state = State { ring: Ring::default(), exit: None, readers: HashMap::new(), next: 0 };
        Self {
            state: Mutex::new(state),
            keep,
            budget,
            news: watch::Sender::new(()),
            taken: Notify::new(),
            first_reader: Instant::now() + patience.first,
            patience: patience.reader,
        }
    }

    /// Waits until `bytes` (at most [`LAG_BYTES_MIN`]) may be written. Cancel safe.
    pub async fn room(&self, bytes: usize) {
        loop {
            let wait = {
                let mut state = self.lock();
                match self.hindrance(&mut state, bytes, Instant::now()) {
                    None => return,
                    Some(until) => until,
                }
            };
            // A mark between the look and the wait is not lost: the owner is the only one that waits.
            tokio::select! {
                () = self.taken.notified() => {}
                () = sleep_until(wait) => {}
            }
        }
    }

    /// What keeps `bytes` from being written, until when; cuts readers whose time is over.
    fn hindrance(&self, state: &mut State, bytes: usize, now: Instant) -> Option<Instant> {
        let oldest = state.ring.oldest_after(bytes, self.capacity());
        let end = state.ring.end();
        if state.next == 0 && state.ring.begin() < oldest && now < self.first_reader {
            return Some(self.first_reader);
        }
        let mut until = None;
        for place in state.readers.values_mut() {
            if place.at == end {
                place.holds = None;
            }
            if place.cut || oldest <= place.at {
                continue;
            }
            let hold = place.holds.filter(|(_, from)| place.at < from + PROGRESS_BYTES);
            let (since, from) = hold.unwrap_or((now, place.at));
            place.holds = Some((since, from));
            if since + self.patience <= now {
                place.cut = true;
                self.news.send_replace(());
            } else {
                until = Some(
                    until.map_or(since + self.patience, |until: Instant| until.min(since + self.patience)),
                );
            }
        }
        until
    }

    /// Adds bytes, for which there is room. The oldest go when they do not fit.
    pub fn write(&self, source: Source, bytes: &[u8]) {
        let mut state = self.lock();
        let before = state.ring.cost();
        state.ring.push(source, bytes);
        // The budget may have become tight since there was room: what readers wait for stays all the same.
        let unread = state.readers.values().filter(|place| !place.cut).map(|place| place.at).min();
        let oldest = state.ring.oldest_after(0, self.capacity()).min(unread.unwrap_or(u64::MAX));
        state.ring.forget_before(oldest);
        self.account(before, state.ring.cost());
        drop(state);
        self.news.send_replace(());
    }

    /// Ends it: nothing is written any more, and no more than asked for is kept.
    pub fn end(&self, exit: Exit) {
        let mut state = self.lock();
        state.exit = Some(exit);
        let before = state.ring.cost();
        // Readers that are under way need what they have not read yet.
        if state.readers.values().all(|place| place.cut || place.at == state.ring.end()) {
            state.ring.shrink(self.keep);
        }
        self.account(before, state.ring.cost());
        drop(state);
        self.news.send_replace(());
    }

    /// How it ended; `None` while the process runs.
    pub fn exit(&self) -> Option<Exit> {
        self.lock().exit.clone()
    }

    /// Begins to read: what is kept first, or only what comes. With `once` it ends where the log ends now.
    pub fn read(self: &Arc<Self>, replay: bool, once: bool) -> Reader {
        let mut state = self.lock();
        let (begin, end) = (state.ring.begin(), state.ring.end());
        let kept = end.saturating_sub(self.keep as u64).max(begin);
        // The first reader gets what waited for it, even if that is more than is to be kept.
        let first = if state.next == 0 { begin } else { kept };
        let at = if replay { first } else { end };
        let id = state.next;
        state.next += 1;
        state.readers.insert(id, Place { at, holds: None, cut: false });
        drop(state);
        self.taken.notify_one();
        Reader {
            log: Arc::clone(self),
            id,
            news: self.news.subscribe(),
            until: once.then_some(end),
            truncated: replay && 0 < at,
        }
    }

    fn capacity(&self) -> usize {
        if self.budget.is_over(1) { LAG_BYTES_MIN } else { self.keep.max(LAG_BYTES) }
    }

    fn account(&self, before: usize, after: usize) {
        self.budget.held.fetch_add(after, Ordering::Relaxed);
        self.budget.held.fetch_sub(before, Ordering::Relaxed);
    }

    // The state is valid after every statement, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let cost = self.lock().ring.cost();
        self.account(cost, 0);
    }
}

impl Reader {
    /// What comes next; `None` at the end: after `Exit`, or where `once` ends. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Item, Cut>> {
        loop {
            self.news.borrow_and_update();
            if let Some(step) = self.step() {
                return step;
            }
            // The log is held, so its end of the channel is there.
            let _ = self.news.changed().await;
        }
    }

    /// One look; `None` when there is nothing yet.
    fn step(&mut self) -> Option<Option<Result<Item, Cut>>> {
        let mut state = self.log.lock();
        let State { ring, exit, readers, .. } = &mut *state;
        let Some(place) = readers.get_mut(&self.id) else { return Some(None) };
        let cut = place.cut;
        let limit = self.until.unwrap_or(u64::MAX).min(ring.end());
        let found = if cut {
            Some(Err(Cut))
        } else if place.at < limit {
            let (source, bytes) = ring.read(place.at, limit, READ_BYTES_MAX);
            place.at += bytes.len() as u64;
            drop(state);
            self.log.taken.notify_one();
            return Some(Some(Ok(Item::Bytes(source, bytes))));
        } else if let Some(exit) = exit.clone() {
            Some(Ok(Item::Exit(exit)))
        } else if self.until.is_some() {
            None
        } else {
            return None;
        };
        // Whatever comes now is the last: it holds nobody up any more.
        readers.remove(&self.id);
        drop(state);
        self.log.taken.notify_one();
        Some(found)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.log.lock().readers.remove(&self.id);
        self.log.taken.notify_one();
    }
}

#[cfg(test)]
mod tests;
