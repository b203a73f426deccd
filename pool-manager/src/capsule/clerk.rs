//! The task that owns the book of users' capsules, and the handle to ask it.

use super::{
    Record,
    book::{Book, Effect, Ending},
    state::Seen,
};
use crate::{
    host::{held::Holds, observed::Observed},
    store::writer::{Job, Writer},
};
use hearth_proto::id::{CapsuleId, TeamId};
use hearth_service::shutdown::Shutdown;
use std::collections::HashSet;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

/// Requests that wait for the task; each takes it microseconds.
const QUEUE: usize = 1024;

enum Message {
    Insert { record: Record },
    Observe { observed: Observed },
    Absent { id: CapsuleId },
    Knows { id: CapsuleId, reply: oneshot::Sender<bool> },
    Active { reply: oneshot::Sender<HashSet<CapsuleId>> },
    Get { team: TeamId, id: CapsuleId, reply: oneshot::Sender<Option<Record>> },
    List { team: TeamId, reply: oneshot::Sender<Vec<Record>> },
    Touch { id: CapsuleId },
    End { team: TeamId, id: CapsuleId, reply: oneshot::Sender<End> },
    Ended { id: CapsuleId },
}

/// Answer to the wish to end a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The book does not know it; its row may.
    Unknown,
    /// It has ended already.
    Over,
    /// Destroy it, then say [`Clerk::ended`].
    Now,
}

/// The task is over, which happens only at shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// Asks the task that owns the book.
#[derive(Debug, Clone)]
pub(crate) struct Clerk {
    messages: mpsc::Sender<Message>,
}

impl Clerk {
    /// The handle, and the task to run. `records` are the rows of capsules that have not ended.
    pub(crate) fn new(
        records: Vec<Record>,
        writer: Writer,
        holds: Holds,
        shutdown: Shutdown,
    ) -> (Self, Keeper) {
        let (messages, queue) = mpsc::channel(QUEUE);
        let mut book = Book::default();
        for record in records {
            book.insert(record);
        }
        (Self { messages }, Keeper { book, writer, holds, queue, shutdown })
    }

    /// A capsule whose row has been written.
    pub(crate) async fn insert(&self, record: Record) {
        self.tell(Message::Insert { record }).await;
    }

    /// Its host says something about a capsule, a user's or not.
    pub(crate) async fn observe(&self, observed: Observed) {
        self.tell(Message::Observe { observed }).await;
    }

    /// Its host does not know a capsule.
    pub(crate) async fn absent(&self, id: CapsuleId) {
        self.tell(Message::Absent { id }).await;
    }

    /// Whether it is a user's, as far as memory goes.
    pub(crate) async fn knows(&self, id: CapsuleId) -> bool {
        // Without an answer nothing may be taken for unknown.
        self.call(|reply| Message::Knows { id, reply }).await.unwrap_or(true)
    }

    /// All that should be on a host.
    pub(crate) async fn active(&self) -> HashSet<CapsuleId> {
        self.call(|reply| Message::Active { reply }).await.unwrap_or_default()
    }

    /// All that should be on a host, or that nobody knows.
    pub(crate) async fn users(&self) -> Result<HashSet<CapsuleId>, Gone> {
        self.call(|reply| Message::Active { reply }).await
    }

    /// A team's capsule that lives or ended lately.
    pub(crate) async fn get(&self, team: TeamId, id: CapsuleId) -> Result<Option<Record>, Gone> {
        self.call(|reply| Message::Get { team, id, reply }).await
    }

    /// A team's living capsules.
    pub(crate) async fn list(&self, team: TeamId) -> Result<Vec<Record>, Gone> {
        self.call(|reply| Message::List { team, reply }).await
    }

    /// A capsule is used.
    pub(crate) async fn touch(&self, id: CapsuleId) {
        self.tell(Message::Touch { id }).await;
    }

    /// A capsule is to be ended.
    pub(crate) async fn end(&self, team: TeamId, id: CapsuleId) -> Result<End, Gone> {
        self.call(|reply| Message::End { team, id, reply }).await
    }

    /// A capsule that was to be ended is gone from its host.
    pub(crate) async fn ended(&self, id: CapsuleId) {
        self.tell(Message::Ended { id }).await;
    }

    async fn tell(&self, message: Message) {
        // Only at shutdown is nobody there, and then the next start reads the rows.
        let _stopping = self.messages.send(message).await;
    }

    async fn call<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(ask(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

/// The task that owns the book.
pub(crate) struct Keeper {
    book: Book,
    writer: Writer,
    holds: Holds,
    queue: mpsc::Receiver<Message>,
    shutdown: Shutdown,
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
        let now = OffsetDateTime::now_utc();
        // Askers that left need no answer.
        match message {
            Message::Insert { record } => self.book.insert(record),
            Message::Observe { observed } => {
                let effect = self.book.observe(observed.id, Seen::Present(&observed.state), now);
                self.apply(observed.id, effect).await;
            }
            Message::Absent { id } => {
                let effect = self.book.observe(id, Seen::Absent, now);
                self.apply(id, effect).await;
            }
            Message::Knows { id, reply } => {
                let _left = reply.send(self.book.knows(id));
            }
            Message::Active { reply } => {
                let _left = reply.send(self.book.active());
            }
            Message::Get { team, id, reply } => {
                let _left = reply.send(self.book.get(team, id).cloned());
            }
            Message::List { team, reply } => {
                let _left = reply.send(self.book.list(team));
            }
            Message::Touch { id } => {
                if self.book.touch(id, now) {
                    self.writer.enqueue(Job::Active { id, at: now }).await;
                }
            }
            Message::End { team, id, reply } => {
                let _left = reply.send(self.end(team, id, now).await);
            }
            Message::Ended { id } => {
                if let Some(change) = self.book.ended(id, now) {
                    self.writer.enqueue(Job::State(change)).await;
                }
            }
        }
    }

    async fn end(&mut self, team: TeamId, id: CapsuleId, now: OffsetDateTime) -> End {
        match self.book.end(team, id, now) {
            Ending::Unknown => End::Unknown,
            Ending::Over => End::Over,
            Ending::Now(None) => End::Now,
            Ending::Now(Some(change)) => {
                self.writer.enqueue(Job::State(change)).await;
                End::Now
            }
        }
    }

    async fn apply(&self, id: CapsuleId, effect: Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Write(change) => {
                let (state, reason) = (change.state.as_str(), change.reason.as_str());
                tracing::info!(capsule.id = %id, state, reason, "capsule changed state");
                self.writer.enqueue(Job::State(change)).await;
            }
            Effect::Destroy => {
                // None: it is being destroyed already.
                if let Some(held) = self.holds.hold(id) {
                    tracing::info!(capsule.id = %id, "capsule runs though it should not, destroyed");
                    drop(held);
                }
            }
        }
    }
}
