//! A VMM that was spawned and does not talk yet: undone unless it does, and why it does not.

use super::{
    control::VmmError,
    folder::{end_of, log_end},
    launch::LaunchError,
};
use crate::reaper::{Reaper, Remains};
use std::{io, path::Path, time::Duration};

/// A pager that refuses to serve ends at once.
const PAGER_WORDS: Duration = Duration::from_secs(1);

/// Hands remains to the reaper unless they were taken out.
pub(super) struct Undo<'a> {
    pub(super) reaper: &'a Reaper,
    pub(super) remains: Option<Remains>,
}

impl Undo<'_> {
    /// Moves the VMM into its control group. On a thread of its own: it blocks.
    pub(super) async fn enter_group(&self) -> io::Result<()> {
        let Some(Remains { processes, uid: Some(uid), .. }) = &self.remains else { return Ok(()) };
        let (Some(process), Some(group)) = (processes.first(), uid.group()) else { return Ok(()) };
        let (pid, entry) = (process.pid(), group.entry());
        tokio::task::spawn_blocking(move || entry.enter(pid)).await.map_err(io::Error::other)?
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(remains) = self.remains.take() {
            self.reaper.bury(remains);
        }
    }
}

/// Why a VMM does not talk, with the ends of its own log and its pager's: a VMM ends when its pager refuses to serve,
/// and only the pager knows why.
pub(super) async fn silent(source: VmmError, undo: &Undo<'_>, folder: &Path) -> LaunchError {
    let pager = undo.remains.as_ref().and_then(|remains| remains.processes.get(1).cloned());
    if let Some(pager) = pager {
        // One that failed says why before it ends; one that lives has nothing to say.
        let _ = tokio::time::timeout(PAGER_WORDS, pager.exited()).await;
    }
    let log = [log_end(folder), end_of(&folder.join("pager.log"))].join(" ");
    LaunchError::Silent { source, log: log.trim().to_owned() }
}
