//! The task that removes files of deleted snapshots from their hosts, then their rows. A host that was away is tried
//! again, so nothing stays behind.

use crate::{
    host::client::{Agent, AgentError},
    site::Sites,
    store::{Store, StoreError},
};
use hearth_service::{shutdown::Shutdown, telemetry};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Notify, time};

/// How often hosts and rows are looked at without a reason.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Says that there is something to remove.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leftovers {
    there: Arc<Notify>,
}

impl Leftovers {
    /// Never waits.
    pub(crate) fn there_are(&self) {
        self.there.notify_one();
    }

    /// The task, until shutdown.
    pub(crate) async fn run(self, sites: Sites, store: Store, shutdown: Shutdown) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                () = self.there.notified() => {}
                () = time::sleep(LOOK_EVERY) => {}
            }
            for site in sites.all() {
                let Some(facts) = site.host.up() else { continue };
                if let Err(error) = remove(&site.host.agent, &store, &facts.id).await {
                    // Nobody waits for it.
                    tracing::debug!(
                        host.id = facts.id,
                        error = telemetry::chain(&error),
                        "snapshots not removed yet"
                    );
                }
            }
        }
    }
}

/// Why files of deleted snapshots are still there.
#[derive(Debug, thiserror::Error)]
enum LeftoverError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

async fn remove(agent: &Agent, store: &Store, host_id: &str) -> Result<(), LeftoverError> {
    for id in store.discarded(host_id).await? {
        agent.delete_snapshot(id).await?;
        store.forget(id).await?;
        tracing::info!(snapshot.id = %id, "files of a deleted snapshot removed");
    }
    Ok(())
}
