//! The steps before a snapshot: warm what the template offers, stop user processes, put the disk in order.

use super::Guest;
use crate::cgroup::FreezeError;
use hearth_runtimes::RuntimeError;
use std::{collections::HashMap, fs, io, time::Duration};
use tokio::sync::oneshot;

/// Longest wait for user processes to stop. A process in the middle of disk I/O stops after it.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);
/// A seed kept for the next boot would be the same in every capsule.
const SAVED_SEED: &str = "/var/lib/systemd/random-seed";

/// Which step failed.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A language's context could not be started or warmed.
    #[error("the {language} context cannot be warmed")]
    Warm {
        /// The language as asked for.
        language: String,
        /// Why.
        source: RuntimeError,
    },
    /// User processes did not stop.
    #[error("user processes cannot be frozen")]
    Freeze(#[source] FreezeError),
    /// The saved seed is still there.
    #[error("{SAVED_SEED} cannot be removed")]
    Seed(#[source] io::Error),
    /// A step's thread did not start, or died.
    #[error("a step has no thread")]
    Thread(#[source] io::Error),
}

/// Takes the steps. After an error user processes run on and the environment is as it was.
pub async fn prepare(guest: &Guest, languages: &[String]) -> Result<(), PrepareError> {
    for language in languages {
        let warmed = guest.runtimes.warm(language).await;
        warmed.map_err(|source| PrepareError::Warm { language: language.clone(), source })?;
    }
    forget_saved_seed().map_err(PrepareError::Seed)?;
    let users = guest.users.clone();
    let frozen = on_own_thread(move || {
        // Most is written while user processes may still run, so that they stand still for the rest only.
        nix::unistd::sync();
        let frozen = users.freeze(FREEZE_LIMIT);
        match &frozen {
            Ok(()) => nix::unistd::sync(),
            Err(_) => {
                if let Err(error) = users.thaw() {
                    tracing::error!(%error, "user processes cannot be thawed");
                }
            }
        }
        frozen
    });
    frozen.await?.map_err(PrepareError::Freeze)?;
    guest.set_env(HashMap::new());
    Ok(())
}

/// Does `work` on a thread that is gone afterwards: one of a pool would end after the restore, at the cost of whoever
/// waits then.
async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PrepareError> {
    let (reply, answer) = oneshot::channel();
    let thread = std::thread::Builder::new().spawn(move || {
        // The caller finishes also when its own caller hangs up.
        let _gone = reply.send(work());
    });
    thread.map_err(PrepareError::Thread)?;
    answer.await.map_err(|_| PrepareError::Thread(io::ErrorKind::BrokenPipe.into()))
}

fn forget_saved_seed() -> io::Result<()> {
    match fs::remove_file(SAVED_SEED) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
