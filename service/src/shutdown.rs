//! Orderly shutdown: a token says that it has begun, a tracker says that it is over.

use std::time::Duration;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Given to every part of a service. Clones share one shutdown.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// A shutdown that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that is cancelled when shutdown begins.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Tasks spawned here are waited for.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Resolves when shutdown has begun. Cancel safe.
    pub async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// Begins shutdown.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Begins shutdown and waits for all tasks, at most `grace`. False when some were still running then.
    pub async fn finish(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tasks.close();
        tokio::time::timeout(grace, self.tasks.wait()).await.is_ok()
    }
}

/// Resolves at SIGTERM or SIGINT. Cancel safe.
pub async fn signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
