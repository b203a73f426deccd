//! Leases of one-shot capsules: released by the caller, or destroyed when their time is over.

pub(crate) mod table;

use crate::{host::held::Held, metrics};
use hearth_proto::id::CapsuleId;
use hearth_service::shutdown::Shutdown;
use std::{collections::HashSet, time::Duration};
use table::Table;
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, Instant},
};

/// Requests that wait for the task; each takes it microseconds.
const QUEUE: usize = 1024;

enum Message {
    Grant { held: Held, lease: Duration },
    Release { id: CapsuleId, known: oneshot::Sender<bool> },
    Ended { id: CapsuleId },
    Ids { reply: oneshot::Sender<HashSet<CapsuleId>> },
}

/// Asks the task that owns the leases.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    messages: mpsc::Sender<Message>,
}

impl Leases {
    /// The handle, and the task to run.
    pub(crate) fn new(shutdown: Shutdown) -> (Self, Keeper) {
        let (messages, queue) = mpsc::channel(QUEUE);
        (Self { messages }, Keeper { table: Table::default(), queue, shutdown })
    }

    /// Lets the capsule live until it is released, at most for `lease`. False when the service is stopping.
    /// When the future is dropped before it is done, the capsule is destroyed.
    pub(crate) async fn grant(&self, held: Held, lease: Duration) -> bool {
        self.messages.send(Message::Grant { held, lease }).await.is_ok()
    }

    /// Ends a lease: the capsule is destroyed in the background. False when there is none of this id.
    pub(crate) async fn release(&self, id: CapsuleId) -> bool {
        let (known, answer) = oneshot::channel();
        if self.messages.send(Message::Release { id, known }).await.is_err() {
            return false;
        }
        answer.await.unwrap_or(false)
    }

    /// The capsule is over on its host.
    pub(crate) async fn ended(&self, id: CapsuleId) {
        // Only at shutdown is nobody there, and then nothing is left to do.
        let _stopping = self.messages.send(Message::Ended { id }).await;
    }

    /// The capsules with a lease.
    pub(crate) async fn ids(&self) -> HashSet<CapsuleId> {
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::Ids { reply }).await.is_err() {
            return HashSet::new();
        }
        answer.await.unwrap_or_default()
    }
}

/// The task that owns the leases.
pub(crate) struct Keeper {
    table: Table<Held>,
    queue: mpsc::Receiver<Message>,
    shutdown: Shutdown,
}

impl Keeper {
    /// Runs until shutdown. Capsules that are in use then are not destroyed: see [`crate::host::stranger`].
    pub(crate) async fn run(mut self) {
        loop {
            let next = self.table.next();
            tokio::select! {
                // Requests before expiry: a release that is already here is not an expired lease.
                biased;
                () = self.shutdown.begun() => return,
                message = self.queue.recv() => match message {
                    Some(message) => self.answer(message),
                    None => return,
                },
                () = time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.expire(),
            }
            metrics::leases(self.table.len());
        }
    }

    fn answer(&mut self, message: Message) {
        match message {
            Message::Grant { held, lease } => {
                let (id, now) = (held.id(), Instant::now());
                self.table.grant(id, now + lease, held);
            }
            Message::Release { id, known } => {
                let released = self.table.remove(id);
                // An asker that left needs no answer.
                let _left = known.send(released.is_some());
            }
            Message::Ended { id } => {
                if self.table.remove(id).is_some() {
                    tracing::warn!(capsule.id = %id, "one-shot capsule ended while in use");
                }
            }
            Message::Ids { reply } => {
                let _left = reply.send(self.table.ids());
            }
        }
    }

    fn expire(&mut self) {
        for held in self.table.expire(Instant::now()) {
            metrics::lease_expired();
            tracing::warn!(capsule.id = %held.id(), "lease expired, capsule destroyed");
        }
    }
}
