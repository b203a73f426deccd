//! What a capsule does around a snapshot: be made ready for one, and become itself after one.

pub mod activate;
pub mod clock;
pub mod entropy;
pub mod identity;
pub mod prepare;

use crate::cgroup::Cgroup;
use clock::Clock;
use hearth_runtimes::Runtimes;
use identity::Names;
use std::{
    collections::HashMap,
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
    /// Where its names are written.
    pub names: Names,
    env: RwLock<Arc<HashMap<String, String>>>,
}

impl Guest {
    /// A guest without an environment.
    pub fn new(clock: Clock, users: Cgroup, runtimes: Runtimes, names: Names) -> Self {
        Self { clock, users, runtimes, names, env: RwLock::default() }
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
