//! Who uses a capsule: every kind of use holds an [`Activity`] while it goes on.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// The uses of one capsule. Clones are of one capsule.
#[derive(Debug, Clone)]
pub struct Activities(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    open: AtomicU64,
    last: Mutex<Instant>,
}

/// A use of a capsule: as long as this lives it is not idle, and its idle time begins when this is dropped. Whatever
/// carries bytes for a user holds one: a run, a program's output, a file, a connection to a port.
#[derive(Debug)]
#[must_use = "the use is over when this is dropped"]
pub struct Activity(Activities);

impl Default for Activities {
    /// Used now, and not since.
    fn default() -> Self {
        Self(Arc::new(Shared { open: AtomicU64::new(0), last: Mutex::new(Instant::now()) }))
    }
}

impl Activities {
    /// Begins a use.
    pub fn begin(&self) -> Activity {
        // With the state's change to pausing this is in one order for all: who pauses sees this, or this one's holder
        // sees the pause.
        self.0.open.fetch_add(1, Ordering::SeqCst);
        Activity(self.clone())
    }

    /// Counts as a use that is over already.
    pub fn touch(&self) {
        let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Instant::now().max(*last);
    }

    /// Whether a use goes on.
    pub fn is_busy(&self) -> bool {
        self.0.open.load(Ordering::SeqCst) != 0
    }

    /// When the last use ended; now, while one goes on.
    pub fn last(&self) -> Instant {
        if self.is_busy() {
            return Instant::now();
        }
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        // In this order nobody sees a capsule that is not used and was not used just now.
        self.0.touch();
        self.0.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capsule_is_busy_while_any_use_goes_on() {
        let activities = Activities::default();
        assert!(!activities.is_busy());
        let begun = activities.last();
        let (one, two) = (activities.begin(), activities.clone().begin());
        drop(one);
        assert!(activities.is_busy());
        drop(two);
        assert!(!activities.is_busy() && activities.last() > begun);
        let last = activities.last();
        assert_eq!(activities.last(), last, "idle time begins at the end of the last use");
        activities.touch();
        assert!(activities.last() > last);
    }
}
