//! The entry point: contexts by id, and what is asked of all of them.

use crate::{
    config::Config,
    context::{Context, DefaultEnv, Queued},
    error::RuntimeError,
    language::Language,
    run::{Mailbox, Run, RunStream},
};
use hearth_proto::wire::run::RunRequest;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// All contexts of this guest. Cheap to clone; when the last clone is dropped, the kernels end.
#[derive(Debug, Clone)]
pub struct Runtimes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    env: Arc<DefaultEnv>,
    /// The default context of each language, made at its first use.
    contexts: Mutex<HashMap<Language, Context>>,
}

impl Runtimes {
    /// No kernel is started yet.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Inner { config: Arc::new(config), env: Arc::default(), contexts: Mutex::default() }))
    }

    /// Starts the kernel of a language's default context and warms it: common modules imported, common
    /// paths run once. To be called before a template is snapshotted; the user's namespace stays fresh.
    pub async fn warm(&self, language: &str) -> Result<(), RuntimeError> {
        self.context(language, "")?.warm().await
    }

    /// Gives every pseudo-random generator of every idle kernel a state from the system's randomness, to be called
    /// after a restore, once the system itself has been reseeded, and before anything runs. A kernel in which no
    /// user code has run yet is reseeded by the request that brings the first: nobody can see its state before, and
    /// waking it twice costs tens of milliseconds under software emulation. Fails closed: a kernel that does not
    /// confirm in time is killed and started anew at its next use. A busy kernel is reseeded before its next run.
    pub async fn reseed(&self) -> Result<(), RuntimeError> {
        let contexts = self.contexts();
        futures::future::join_all(contexts.iter().map(Context::reseed)).await.into_iter().collect()
    }

    /// Replaces the default environment of later runs, on top of what kernels start with.
    pub fn set_env(&self, env: HashMap<String, String>) {
        self.0.env.set(env);
    }

    /// Queues a run in its context. The stream yields its events and ends with `End`; dropping it earlier
    /// interrupts the run.
    pub async fn execute(&self, request: RunRequest) -> Result<RunStream, RuntimeError> {
        let accepted = Instant::now();
        let context = self.context(&request.language, &request.context_id)?;
        let run = Run::try_from(request)?;
        let (mailbox, stream) = Mailbox::new();
        context.submit(Queued { run, mailbox, accepted })?;
        Ok(stream)
    }

    /// The context, made if it is a default one.
    fn context(&self, language: &str, id: &str) -> Result<Context, RuntimeError> {
        let known =
            Language::parse(language).ok_or_else(|| RuntimeError::UnknownLanguage(language.into()))?;
        if !id.is_empty() && id != known.name() {
            return Err(RuntimeError::UnknownContext(id.into()));
        }
        let mut contexts = self.0.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Context::start(known.name(), known, self.0.config.clone(), self.0.env.clone());
        Ok(contexts.entry(known).or_insert_with(make).clone())
    }

    fn contexts(&self) -> Vec<Context> {
        self.0.contexts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
