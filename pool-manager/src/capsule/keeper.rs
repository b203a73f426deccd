//! The task that owns the book of users' capsules.

use super::{
    Record,
    book::{Begin, Book, Effect, Ending},
    clerk::{End, Settlement},
    events::Events,
    now,
    operation::{Kind, Outcome},
    quota::Reservation,
    state::Seen,
};
use crate::{
    error::Refused,
    host::{
        held::Holds,
        observed::{Figures, Observed},
    },
    store::writer::{Job, Writer},
};
use hearth_proto::id::{CapsuleId, TeamId};
use hearth_service::shutdown::Shutdown;
use std::collections::HashSet;
use tokio::sync::{mpsc, oneshot};

/// What the task is asked; see [`super::clerk::Clerk`].
pub(super) enum Message {
    Insert {
        record: Box<Record>,
        reservation: Option<Reservation>,
        event: Option<&'static str>,
    },
    Observe {
        observed: Observed,
        holds: Holds,
    },
    Absent {
        id: CapsuleId,
    },
    Hosts {
        hosts: HashSet<String>,
    },
    /// A question that changes no row.
    Ask(Box<dyn FnOnce(&mut Book) + Send>),
    Touch {
        id: CapsuleId,
    },
    Begin {
        team: TeamId,
        id: CapsuleId,
        kind: Kind,
        reply: oneshot::Sender<Begin>,
    },
    Settle {
        id: CapsuleId,
        settlement: Box<Settlement>,
        reply: oneshot::Sender<Outcome>,
    },
    End {
        team: TeamId,
        id: CapsuleId,
        reply: oneshot::Sender<End>,
    },
    Ended {
        id: CapsuleId,
    },
}

/// The task that owns the book.
pub(crate) struct Keeper {
    pub(super) book: Book,
    pub(super) writer: Writer,
    pub(super) events: Events,
    pub(super) queue: mpsc::Receiver<Message>,
    pub(super) shutdown: Shutdown,
}

impl Keeper {
    /// Runs until shutdown.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                // Requests first: what was asked before the shutdown still reaches its row.
                biased;
                message = self.queue.recv() => match message {
                    Some(message) => self.answer(message).await,
                    None => return,
                },
                () = self.shutdown.begun() => return,
            }
        }
    }

    async fn answer(&mut self, message: Message) {
        // Askers that left need no answer.
        match message {
            Message::Insert { record, reservation, event } => {
                if let Some(event) = event {
                    self.events.capsule(event, &record);
                }
                self.book.insert(*record);
                drop(reservation);
            }
            Message::Observe { observed, holds } => {
                let seen = Seen::Present(&observed.state);
                let effect = self.book.observe(observed.id, seen, observed.figures, now());
                if effect == Effect::Destroy {
                    destroy(observed.id, &holds);
                }
                self.apply(effect).await;
            }
            Message::Absent { id } => self.absent(id).await,
            Message::Hosts { hosts } => {
                for id in self.book.homeless(&hosts) {
                    self.absent(id).await;
                }
            }
            Message::Ask(read) => read(&mut self.book),
            Message::Touch { id } => {
                if let Some(record) = self.book.touch(id, now()) {
                    self.write(record).await;
                }
            }
            Message::Begin { team, id, kind, reply } => {
                let _left = reply.send(self.begin(team, id, kind).await);
            }
            Message::Settle { id, settlement, reply } => {
                let _left = reply.send(self.settle(id, *settlement).await);
            }
            Message::End { team, id, reply } => {
                let _left = reply.send(self.end(team, id).await);
            }
            Message::Ended { id } => {
                let effect = self.book.ended(id, now());
                self.apply(effect).await;
            }
        }
    }

    async fn absent(&mut self, id: CapsuleId) {
        let effect = self.book.observe(id, Seen::Absent, Figures::default(), now());
        self.apply(effect).await;
    }

    async fn begin(&mut self, team: TeamId, id: CapsuleId, kind: Kind) -> Begin {
        let begin = self.book.begin(team, id, kind, now());
        if let Begin::Go { record, write: true, .. } | Begin::Nothing { record, write: true } = &begin {
            self.write(record.as_ref().clone()).await;
        }
        begin
    }

    async fn settle(&mut self, id: CapsuleId, settlement: Settlement) -> Outcome {
        let record = self.book.settle(id, settlement.edit, now());
        if let Some(record) = &record {
            self.write(record.clone()).await;
            if let Some(event) = settlement.event {
                self.events.capsule(event, record);
                tracing::info!(capsule.id = %id, event, "capsule changed");
            }
        }
        let outcome = match (settlement.result, record) {
            (Ok(()), Some(record)) => Ok(record),
            (Ok(()), None) => Err(Refused::no_capsule()),
            (Err(refused), _) => Err(refused),
        };
        settlement.ticket.done(outcome.clone());
        outcome
    }

    async fn end(&mut self, team: TeamId, id: CapsuleId) -> End {
        match self.book.end(team, id, now()) {
            Ending::Unknown => End::Unknown,
            Ending::Over => End::Over,
            Ending::Now { record, write } => {
                let host_id = record.host_id.clone();
                if write {
                    self.write(*record).await;
                }
                End::Now { host_id }
            }
        }
    }

    async fn apply(&self, effect: Effect) {
        let Effect::Write(record, event) = effect else { return };
        if let Some(event) = event {
            let (state, reason) = (record.state.as_str(), record.reason.as_str());
            tracing::info!(capsule.id = %record.id, state, reason, "capsule changed state");
            self.events.capsule(event, &record);
        }
        self.write(*record).await;
    }

    async fn write(&self, record: Record) {
        self.writer.enqueue(Job::Capsule(Box::new(record))).await;
    }
}

fn destroy(id: CapsuleId, holds: &Holds) {
    // None: it is being destroyed already.
    if let Some(held) = holds.hold(id) {
        tracing::info!(capsule.id = %id, "capsule runs though it should not, destroyed");
        drop(held);
    }
}
