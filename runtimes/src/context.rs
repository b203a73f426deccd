//! A context: a stateful session, owned by one task. Others hold a handle.

mod runner;

use crate::{
    config::Config,
    error::RuntimeError,
    language::Language,
    run::{Mailbox, Run},
};
use runner::Runner;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::sync::{mpsc, oneshot, watch};

/// The default environment of runs, with a version so that a kernel is told only of changes.
#[derive(Debug, Default)]
pub(crate) struct DefaultEnv(Mutex<(u64, Arc<HashMap<String, String>>)>);

impl DefaultEnv {
    /// Replaces the default environment.
    pub(crate) fn set(&self, env: HashMap<String, String>) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *current.1 != env {
            *current = (current.0 + 1, Arc::new(env));
        }
    }

    /// Version (0: never set) and content.
    fn get(&self) -> (u64, Arc<HashMap<String, String>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A run that waits for its turn.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) run: Run,
    pub(crate) mailbox: Mailbox,
    /// When the request came.
    pub(crate) accepted: Instant,
}

/// What can be asked of a context besides runs.
#[derive(Debug)]
pub(crate) enum Control {
    Warm(oneshot::Sender<Result<(), RuntimeError>>),
    Reseed(oneshot::Sender<()>),
}

/// A context, from outside.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    runs: mpsc::Sender<Box<Queued>>,
    control: mpsc::Sender<Control>,
    busy: watch::Receiver<bool>,
}

impl Context {
    /// Starts the task of a context. Its kernel starts with the first use.
    pub(crate) fn start(id: &str, language: Language, config: Arc<Config>, env: Arc<DefaultEnv>) -> Self {
        let (runs, queue) = mpsc::channel(config.limits.queue.max(1));
        let (control, requests) = mpsc::channel(8);
        let (is_busy, busy) = watch::channel(false);
        // Ends when the last handle is dropped.
        tokio::spawn(Runner::new(id.to_owned(), language, config, env).run(queue, requests, is_busy));
        Self { runs, control, busy }
    }

    /// Queues a run.
    pub(crate) fn submit(&self, queued: Queued) -> Result<(), RuntimeError> {
        self.runs.try_send(Box::new(queued)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => RuntimeError::Busy,
            mpsc::error::TrySendError::Closed(_) => RuntimeError::Ended,
        })
    }

    /// Starts and warms the kernel.
    pub(crate) async fn warm(&self) -> Result<(), RuntimeError> {
        let (reply, answer) = oneshot::channel();
        self.control.send(Control::Warm(reply)).await.map_err(|_| RuntimeError::Ended)?;
        answer.await.map_err(|_| RuntimeError::Ended)?
    }

    /// Reseeds the kernel if it is idle. A busy one is reseeded before its next run, which this does not
    /// wait for.
    pub(crate) async fn reseed(&self) -> Result<(), RuntimeError> {
        let (reply, answer) = oneshot::channel();
        self.control.send(Control::Reseed(reply)).await.map_err(|_| RuntimeError::Ended)?;
        let mut busy = self.busy.clone();
        tokio::select! {
            // An answer counts even when the next run has begun since.
            biased;
            answer = answer => answer.map_err(|_| RuntimeError::Ended),
            _ = busy.wait_for(|busy| *busy) => Ok(()),
        }
    }
}
