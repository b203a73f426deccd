//! Restores that somebody waits for: in order, bounded in number, in front of every refill.

use crate::{
    error::Refused,
    host::{client::Start, held::Held, restore::Restorer},
    metrics,
};
use hearth_service::shutdown::Shutdown;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, oneshot, watch as level},
    time,
};

/// Callers that wait for a restore. More than this is refused at once: they would only time out.
const WAITING_MAX: usize = 512;

/// Restores on demand. Clones share the turns.
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    restorer: Restorer,
    /// Fair: turns are given in the order of asking.
    turns: Arc<Semaphore>,
    count: level::Sender<usize>,
    wait: Duration,
    shutdown: Shutdown,
}

impl Demand {
    /// `at_once` restores at a time; a caller waits at most `wait` for its turn.
    pub(crate) fn new(restorer: Restorer, at_once: usize, wait: Duration, shutdown: Shutdown) -> Self {
        let turns = Arc::new(Semaphore::new(at_once));
        Self { restorer, turns, count: level::Sender::new(0), wait, shutdown }
    }

    /// How many restores run or wait.
    pub(crate) fn level(&self) -> level::Receiver<usize> {
        self.count.subscribe()
    }

    /// How many there are at this moment.
    pub(crate) fn now(&self) -> usize {
        *self.count.borrow()
    }

    /// Restores a running capsule. When the future is dropped, a restore under way is finished and its capsule then
    /// destroyed: the agent is never asked for both at once.
    pub(crate) async fn restore(&self, template: &str, start: Start) -> Result<Held, Refused> {
        let counted = self.counted()?;
        let turn = match time::timeout(self.wait, Arc::clone(&self.turns).acquire_owned()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_closed)) => return Err(Refused::stopping()),
            Err(_) => {
                let waited = self.wait.as_millis();
                return Err(Refused::NoCapacity(format!("no restore could begin within {waited} ms")));
            }
        };
        let (reply, answer) = oneshot::channel();
        let (restorer, template) = (self.restorer.clone(), template.to_owned());
        let stop = self.shutdown.token();
        self.shutdown.tasks().spawn(async move {
            let restored = stop.run_until_cancelled(restorer.running(&template, start)).await;
            // Turn and count end before the answer goes out, so that who hears of it sees them ended.
            drop((turn, counted));
            // A caller that left drops the capsule here, which destroys it.
            let _left = reply.send(restored);
        });
        match answer.await {
            Ok(Some(restored)) => restored.map_err(|error| error.refused("start the capsule")),
            Ok(None) | Err(_) => Err(Refused::stopping()),
        }
    }

    fn counted(&self) -> Result<Counted, Refused> {
        let mut entered = false;
        self.count.send_if_modified(|count| {
            entered = *count < WAITING_MAX;
            *count += usize::from(entered);
            metrics::demand(*count);
            entered
        });
        if entered {
            Ok(Counted { count: self.count.clone() })
        } else {
            Err(Refused::NoCapacity(format!("{WAITING_MAX} restores are waiting")))
        }
    }
}

/// One restore that runs or waits.
#[derive(Debug)]
struct Counted {
    count: level::Sender<usize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.send_modify(|count| {
            *count -= 1;
            metrics::demand(*count);
        });
    }
}
