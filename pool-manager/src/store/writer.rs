//! Writes that nobody waits for, and that survive an outage of the database: kept in memory, the newest per row, and
//! tried until the database takes them. What is lost with this process is found again by comparing with the host.

use super::{Store, StoreError};
use crate::{
    capsule::Record,
    host::{HostFacts, status::HostStatus},
    metrics,
    retry::{self, Backoff},
    template::Template,
};
use hearth_proto::id::CapsuleId;
use hearth_service::{shutdown::Shutdown, telemetry};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    sync::mpsc,
    time::{self as clock, Instant},
};

/// Jobs on their way to the task, which always takes them.
const QUEUE: usize = 1024;
/// Rows with something to write. More capsules than a host can have.
const PENDING_MAX: usize = 16_384;
/// How long the last writes may take at shutdown.
const LAST_WRITES: Duration = Duration::from_secs(3);
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(5) };

/// One write. A later job for the same row and kind replaces an earlier one.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    /// All that can change of a capsule.
    Capsule(Box<Record>),
    Host {
        facts: HostFacts,
        endpoint: String,
    },
    HostStatus {
        id: String,
        status: HostStatus,
    },
    Template(Template),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Capsule(CapsuleId),
    Host(String),
    Template(String),
}

impl Job {
    fn key(&self) -> Key {
        match self {
            Self::Capsule(record) => Key::Capsule(record.id),
            Self::Host { facts, .. } => Key::Host(facts.id.clone()),
            Self::HostStatus { id, .. } => Key::Host(id.clone()),
            Self::Template(template) => Key::Template(template.name.clone()),
        }
    }
}

/// Hands writes to the task.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// The handle, and the task to run.
    pub(crate) fn new(store: Store, shutdown: Shutdown) -> (Self, Keeper) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        (Self { jobs }, Keeper { store, queue, pending: BTreeMap::new(), shutdown })
    }

    /// Queues a write. Waits for the task to take it, never for the database.
    pub(crate) async fn enqueue(&self, job: Job) {
        if let Err(error) = self.jobs.send(job).await {
            tracing::debug!(job = ?error.0, "not written, the service is stopping");
        }
    }
}

/// The task that writes.
pub(crate) struct Keeper {
    store: Store,
    queue: mpsc::Receiver<Job>,
    pending: BTreeMap<Key, Job>,
    shutdown: Shutdown,
}

impl Keeper {
    /// Runs until shutdown, then writes what is pending, within a deadline.
    pub(crate) async fn run(mut self) {
        let stop = self.shutdown.token();
        let mut failures = 0;
        loop {
            if self.pending.is_empty() {
                tokio::select! {
                    biased;
                    job = self.queue.recv() => match job {
                        Some(job) => self.keep(job),
                        None => break,
                    },
                    () = stop.cancelled() => break,
                }
            }
            self.collect();
            let Err(reason) = self.flush().await else {
                failures = 0;
                continue;
            };
            failures += 1;
            if failures == 1 {
                tracing::warn!(reason, pending = self.pending.len(), "writes wait for the database");
            }
            if !self.pause(BACKOFF.delay(failures, retry::unit())).await {
                break;
            }
        }
        self.finish().await;
    }

    /// Takes jobs for as long as `pause`. False at shutdown.
    async fn pause(&mut self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let stop = self.shutdown.token();
        loop {
            tokio::select! {
                // The end before jobs, so that many jobs do not put it off.
                biased;
                () = stop.cancelled() => return false,
                () = clock::sleep_until(end) => return true,
                job = self.queue.recv() => match job {
                    Some(job) => self.keep(job),
                    None => return false,
                },
            }
        }
    }

    fn collect(&mut self) {
        while let Ok(job) = self.queue.try_recv() {
            self.keep(job);
        }
    }

    fn keep(&mut self, job: Job) {
        let key = job.key();
        if self.pending.len() >= PENDING_MAX && !self.pending.contains_key(&key) {
            tracing::error!(?job, "too many writes are pending, this one is lost");
            return;
        }
        self.pending.insert(key, job);
        metrics::writes_pending(self.pending.len());
    }

    /// Writes what is pending. An error says why the database is away; the rest stays pending then.
    async fn flush(&mut self) -> Result<(), String> {
        while let Some((key, job)) = self.pending.pop_first() {
            match self.write(&job).await {
                Ok(()) => {}
                Err(StoreError::Away(reason)) => {
                    self.pending.insert(key, job);
                    return Err(reason);
                }
                Err(error) => {
                    tracing::error!(?job, error = telemetry::chain(&error), "write refused, not tried again");
                }
            }
            metrics::writes_pending(self.pending.len());
        }
        Ok(())
    }

    async fn write(&self, job: &Job) -> Result<(), StoreError> {
        match job {
            Job::Capsule(record) => self.store.change(record).await,
            Job::Host { facts, endpoint } => self.store.host(facts, endpoint).await,
            Job::HostStatus { id, status } => self.store.host_status(id, *status).await,
            Job::Template(template) => self.store.template(template).await,
        }
    }

    async fn finish(mut self) {
        // Others end at the same time and may still have something to say; they cannot once the queue is closed.
        self.queue.close();
        while let Some(job) = self.queue.recv().await {
            self.keep(job);
        }
        if !matches!(clock::timeout(LAST_WRITES, self.flush()).await, Ok(Ok(()))) {
            tracing::warn!(pending = self.pending.len(), "not everything was written");
        }
    }
}
