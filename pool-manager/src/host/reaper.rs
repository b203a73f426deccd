//! Destroys capsules that nobody holds any more, off every request's path.

use super::{client::Agent, held::Holds};
use crate::retry::{self, Backoff};
use hearth_proto::id::CapsuleId;
use hearth_service::shutdown::Shutdown;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc},
    time,
};

/// Destroys at once: ending a VMM is cheap, but 20 of them at once would stall the next restore.
const AT_ONCE: usize = 4;
/// About a minute in all. What is left then is found by the next comparison with the host.
const TRIES: u32 = 8;
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), most: Duration::from_secs(15) };

/// Runs until shutdown; what was queued before it is still destroyed.
pub(crate) async fn run(
    mut queue: mpsc::Receiver<CapsuleId>,
    holds: Holds,
    agent: Agent,
    shutdown: Shutdown,
) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let id = tokio::select! {
            // The queue outranks shutdown: what is in it was let go before.
            biased;
            id = queue.recv() => id,
            () = shutdown.begun() => None,
        };
        let Some(id) = id else { return };
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (agent, holds, stop) = (agent.clone(), holds.clone(), shutdown.clone());
        shutdown.tasks().spawn(async move {
            destroy(&agent, id, &stop).await;
            holds.forget(id);
            drop(slot);
        });
    }
}

async fn destroy(agent: &Agent, id: CapsuleId, shutdown: &Shutdown) {
    for failures in 1..=TRIES {
        let Err(error) = agent.destroy(id).await else { return };
        if failures == TRIES || shutdown.token().is_cancelled() {
            tracing::warn!(capsule.id = %id, %error, "capsule not destroyed, left to the next comparison");
            return;
        }
        tracing::debug!(capsule.id = %id, %error, failures, "destroy is tried again");
        tokio::select! {
            // Shutdown ends the wait; the loop then tries once more.
            biased;
            () = shutdown.begun() => {}
            () = time::sleep(BACKOFF.delay(failures, retry::unit())) => {}
        }
    }
}
