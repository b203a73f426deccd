//! Undoing what cannot be undone in a `Drop`: waiting for killed processes, then removing their folders.

pub mod sweep;

use crate::{memory::image::Image, vmm::process::Process, vmm::uid::UidLease};
use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// A killed process is gone within milliseconds unless the host swaps or its disk hangs.
const EXIT_DEADLINE: Duration = Duration::from_secs(20);

/// The remains of a VMM whose processes were sent SIGKILL.
#[derive(Debug)]
pub struct Remains {
    /// VMM first, then its pager.
    pub processes: Vec<Arc<Process>>,
    /// Removed when the processes are gone.
    pub folder: PathBuf,
    /// Given back when the processes are gone, not before: a user id must not meet another's files.
    pub uid: Option<UidLease>,
    /// Let go when nobody maps it any more.
    pub image: Option<Arc<Image>>,
}

/// Takes remains over. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Reaper {
    queue: mpsc::Sender<Remains>,
    work: TaskTracker,
}

impl Reaper {
    /// Starts the reaper. `capacity` is the number of VMMs that can exist: the queue never overflows.
    pub fn start(capacity: usize) -> Self {
        let (queue, mut remains) = mpsc::channel::<Remains>(capacity.max(1));
        let work = TaskTracker::new();
        let tasks = work.clone();
        tokio::spawn(async move {
            while let Some(remains) = remains.recv().await {
                tasks.spawn(bury(remains));
            }
        });
        Self { queue, work }
    }

    /// Hands over remains. Never blocks; were the queue full, the next start's sweep would find them.
    pub fn bury(&self, remains: Remains) {
        if let Err(error) = self.queue.try_send(remains) {
            tracing::error!(%error, "remains of a VMM are left for the next start's sweep");
        }
    }

    /// Waits until all that was handed over is undone.
    pub async fn drain(&self) {
        // The queue is handed to tasks at once; closing only makes `wait` return when they are done.
        while self.queue.capacity() < self.queue.max_capacity() {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        self.work.close();
        self.work.wait().await;
        self.work.reopen();
    }
}

/// Kills, waits for the end, removes the folder.
pub(crate) async fn bury(remains: Remains) {
    for process in &remains.processes {
        if let Err(error) = process.kill() {
            tracing::error!(pid = process.pid(), %error, "a process could not be killed");
        }
        match tokio::time::timeout(EXIT_DEADLINE, process.exited()).await {
            Ok(_) => {
                process.reap();
            }
            Err(_) => tracing::error!(pid = process.pid(), "a killed process does not end"),
        }
    }
    remove_folder(remains.folder).await;
}

async fn remove_folder(folder: PathBuf) {
    let path = folder.clone();
    // Not joined: the runtime waits for its blocking threads.
    let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await;
    match removed {
        Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(folder = %folder.display(), %error, "a VMM's folder is left for the next start's sweep");
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "removing a VMM's folder"),
    }
}
