//! What a capsule does around a snapshot: be made ready for one, and become itself after one.

pub mod activate;
pub mod clock;
pub mod entropy;
pub mod identity;
pub mod prepare;

use crate::cgroup::Cgroup;
use clock::Clock;
use hearth_runtimes::Runtimes;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

/// What activation and preparation act on.
pub struct Guest {
    /// The clock that calls correct.
    pub clock: Clock,
    /// The group of all user processes.
    pub users: Cgroup,
    /// The kernels.
    pub runtimes: Runtimes,
    /// A folder on a tmpfs, ours alone.
    pub run_dir: PathBuf,
    env: RwLock<Arc<HashMap<String, String>>>,
}

impl Guest {
    /// A guest without an environment.
    pub fn new(clock: Clock, users: Cgroup, runtimes: Runtimes, run_dir: PathBuf) -> Self {
        Self { clock, users, runtimes, run_dir, env: RwLock::default() }
    }

    /// The capsule's environment.
    pub fn env(&self) -> Arc<HashMap<String, String>> {
        Arc::clone(&self.env.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces it, for processes and runs that begin from now on.
    fn set_env(&self, env: HashMap<String, String>) {
        self.runtimes.set_env(env.clone());
        *self.env.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(env);
    }
}
