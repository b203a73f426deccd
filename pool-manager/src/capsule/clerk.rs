//! The handle to the task that owns the book of users' capsules.

use super::{
    Record,
    book::{Begin, Book, Edit, TeamNow},
    events::Events,
    keeper::{Keeper, Message},
    operation::{Joined, Kind, Outcome, Ticket},
    quota::{Amount, Limits, Reservation},
};
use crate::{
    error::Refused,
    host::{held::Holds, observed::Observed},
    store::writer::Writer,
};
use hearth_proto::id::{CapsuleId, TeamId};
use hearth_service::shutdown::Shutdown;
use std::collections::{HashMap, HashSet};
use tokio::sync::{mpsc, oneshot};

/// Requests that wait for the task; each takes it microseconds.
const QUEUE: usize = 1024;

/// Answer to the wish to end a capsule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The book does not know it; its row may.
    Unknown,
    /// It has ended already.
    Over,
    /// Destroy it on this host, then say [`Clerk::ended`].
    Now { host_id: String },
}

/// How an operation ended.
#[derive(Debug)]
pub(crate) struct Settlement {
    pub(crate) ticket: Ticket,
    pub(crate) edit: Edit,
    /// What listeners are told; none when it failed or changed nothing that matters to them.
    pub(crate) event: Option<&'static str>,
    pub(crate) result: Result<(), Refused>,
}

/// The task is over, which happens only at shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl From<Gone> for Refused {
    fn from(_: Gone) -> Self {
        Self::stopping()
    }
}

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
        events: Events,
        shutdown: Shutdown,
    ) -> (Self, Keeper) {
        let (messages, queue) = mpsc::channel(QUEUE);
        let mut book = Book::default();
        for record in records {
            book.insert(record);
        }
        (Self { messages }, Keeper { book, writer, events, queue, shutdown })
    }

    /// A capsule whose row has been written, in place of what was kept for it. `event` says how it came.
    pub(crate) async fn insert(
        &self,
        record: Record,
        reservation: Option<Reservation>,
        event: Option<&'static str>,
    ) {
        self.tell(Message::Insert { record: Box::new(record), reservation, event }).await;
    }

    /// Its host says something about a capsule, a user's or not.
    pub(crate) async fn observe(&self, observed: Observed, holds: Holds) {
        self.tell(Message::Observe { observed, holds }).await;
    }

    /// Its host does not know a capsule.
    pub(crate) async fn absent(&self, id: CapsuleId) {
        self.tell(Message::Absent { id }).await;
    }

    /// The hosts there are, by their ids. Capsules of others are missing.
    pub(crate) async fn hosts(&self, hosts: HashSet<String>) {
        self.tell(Message::Hosts { hosts }).await;
    }

    /// Whether it is a user's, as far as memory goes.
    pub(crate) async fn knows(&self, id: CapsuleId) -> bool {
        // Without an answer nothing may be taken for unknown.
        self.ask(move |book| book.knows(id)).await.unwrap_or(true)
    }

    /// All that should be on a host.
    pub(crate) async fn active(&self, host_id: &str) -> HashSet<CapsuleId> {
        let host_id = host_id.to_owned();
        let on_host = move |book: &mut Book| {
            book.active().filter(|(_, host)| *host == host_id).map(|(id, _)| id).collect()
        };
        self.ask(on_host).await.unwrap_or_default()
    }

    /// All that should be on a host, or that nobody knows.
    pub(crate) async fn users(&self) -> Result<HashSet<CapsuleId>, Gone> {
        self.ask(|book| book.active().map(|(id, _)| id).collect()).await
    }

    /// A team's capsule that lives or ended lately.
    pub(crate) async fn get(&self, team: TeamId, id: CapsuleId) -> Result<Option<Record>, Gone> {
        self.ask(move |book| book.get(team, id)).await
    }

    /// The same, whoever's it is.
    pub(crate) async fn find(&self, id: CapsuleId) -> Result<Option<Record>, Gone> {
        self.ask(move |book| book.find(id)).await
    }

    /// A team's living capsules, and those that ended lately.
    pub(crate) async fn list(&self, team: TeamId) -> Result<Vec<Record>, Gone> {
        self.ask(move |book| book.list(team)).await
    }

    /// What runs on each host.
    pub(crate) async fn loads(&self) -> Result<HashMap<String, Amount>, Gone> {
        self.ask(|book| book.loads()).await
    }

    /// How many capsules that have not ended each host has.
    pub(crate) async fn counts(&self) -> Result<HashMap<String, u32>, Gone> {
        let count = |book: &mut Book| {
            let mut counts: HashMap<String, u32> = HashMap::new();
            for (_, host_id) in book.active() {
                *counts.entry(host_id.to_owned()).or_default() += 1;
            }
            counts
        };
        self.ask(count).await
    }

    /// Every team with capsules, and what it used since this was asked last.
    pub(crate) async fn sample(&self) -> Result<Vec<TeamNow>, Gone> {
        self.ask(Book::sample).await
    }

    /// Keeps room for capsules of a team that are being made, within its limits.
    pub(crate) async fn reserve(
        &self,
        team: TeamId,
        more: Amount,
        limits: Limits,
    ) -> Result<Reservation, Refused> {
        self.ask(move |book| book.reserve(team, more, limits)).await?
    }

    /// A capsule is used.
    pub(crate) async fn touch(&self, id: CapsuleId) {
        self.tell(Message::Touch { id }).await;
    }

    /// Something is to be done with a capsule.
    pub(crate) async fn begin(&self, team: TeamId, id: CapsuleId, kind: Kind) -> Result<Begin, Gone> {
        self.call(|reply| Message::Begin { team, id, kind, reply }).await
    }

    /// To wait for what is under way with a capsule.
    pub(crate) async fn joined(&self, id: CapsuleId) -> Result<Option<Joined>, Gone> {
        self.ask(move |book| book.joined(id)).await
    }

    /// It is done, or not. All who joined hear of it.
    pub(crate) async fn settle(&self, id: CapsuleId, settlement: Settlement) -> Outcome {
        self.call(|reply| Message::Settle { id, settlement: Box::new(settlement), reply }).await?
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

    async fn ask<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Book) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        self.call(|reply| {
            Message::Ask(Box::new(move |book| {
                // Askers that left need no answer.
                let _left = reply.send(read(book));
            }))
        })
        .await
    }

    async fn call<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(ask(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}
