//! One pool: the task that owns its capsules, and the handle to ask it.

use super::{
    Stock, TARGET_MAX,
    policy::{self, Decision, Situation},
    refill::Refills,
};
use crate::{
    host::{Link, held::Held, restore::Restorer},
    metrics,
    template::catalogue::Catalogue,
};
use hearth_proto::id::CapsuleId;
use hearth_service::shutdown::Shutdown;
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch as level},
    time::{self, Instant},
};

/// Requests that wait for the task; each takes it microseconds.
const QUEUE: usize = 1024;

enum Message {
    Take { reply: oneshot::Sender<Option<Held>> },
    Adopt { held: Held, kept: oneshot::Sender<bool> },
    Gone { id: CapsuleId },
    ClaimedElsewhere { id: CapsuleId },
    Parked { reply: oneshot::Sender<HashSet<CapsuleId>> },
    SetTarget { target: usize, reply: oneshot::Sender<Stock> },
}

/// Asks the task that owns a pool.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    messages: mpsc::Sender<Message>,
    stock: level::Receiver<Stock>,
}

/// The pool's task is over, which happens only at shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl Pool {
    /// The oldest parked capsule; `None` when there is none. Memory only. When the future is dropped, the capsule that
    /// was on its way is destroyed.
    pub(crate) async fn take(&self) -> Result<Option<Held>, Gone> {
        self.call(|reply| Message::Take { reply }).await
    }

    /// Adds a parked capsule unless the pool is full; then it is destroyed, and the answer is false.
    pub(crate) async fn adopt(&self, held: Held) -> bool {
        self.call(|kept| Message::Adopt { held, kept }).await.unwrap_or(false)
    }

    /// Drops a capsule that is over on its host.
    pub(crate) async fn gone(&self, id: CapsuleId) {
        // Only at shutdown is nobody there, and then nothing is left to do. So below.
        let _stopping = self.messages.send(Message::Gone { id }).await;
    }

    /// Drops a capsule that runs, without destroying it.
    pub(crate) async fn claimed_elsewhere(&self, id: CapsuleId) {
        let _stopping = self.messages.send(Message::ClaimedElsewhere { id }).await;
    }

    /// The parked capsules.
    pub(crate) async fn parked(&self) -> HashSet<CapsuleId> {
        self.call(|reply| Message::Parked { reply }).await.unwrap_or_default()
    }

    /// Sets the target, at most [`TARGET_MAX`].
    pub(crate) async fn set_target(&self, target: usize) -> Result<Stock, Gone> {
        self.call(|reply| Message::SetTarget { target: target.min(TARGET_MAX), reply }).await
    }

    /// The pool as it was after its last change.
    pub(crate) fn stock(&self) -> Stock {
        self.stock.borrow().clone()
    }

    async fn call<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(ask(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

/// What a pool sees of the rest.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) link: level::Receiver<Link>,
    pub(crate) catalogue: level::Receiver<Arc<Catalogue>>,
    /// Restores on demand that run or wait.
    pub(crate) demand: level::Receiver<usize>,
    pub(crate) shutdown: Shutdown,
}

/// The task that owns a pool.
pub(crate) struct Keeper {
    template: String,
    parked: VecDeque<Held>,
    refills: Refills,
    refills_max: usize,
    stock: Stock,
    last_take: Option<Instant>,
    lacking_since: Option<Instant>,
    around: Surroundings,
    queue: mpsc::Receiver<Message>,
    published: level::Sender<Stock>,
}

impl Keeper {
    /// The pool of `template`, its handle and its task.
    pub(crate) fn new(
        template: &str,
        target: usize,
        refills_max: usize,
        restorer: Restorer,
        around: Surroundings,
    ) -> (Pool, Self) {
        let (messages, queue) = mpsc::channel(QUEUE);
        let stock = Stock { target, ..Stock::default() };
        let (published, receiver) = level::channel(stock.clone());
        let keeper = Self {
            template: template.to_owned(),
            parked: VecDeque::new(),
            refills: Refills::new(template.to_owned(), restorer),
            refills_max,
            stock,
            last_take: None,
            lacking_since: None,
            around,
            queue,
            published,
        };
        (Pool { messages, stock: receiver }, keeper)
    }

    /// Runs until shutdown. Parked capsules stay on their host for the next start.
    pub(crate) async fn run(mut self) {
        loop {
            let wait = self.act();
            self.publish();
            tokio::select! {
                // Requests before refills: whoever takes sees every capsule that is parked, and a burst is counted
                // as a whole before anything is started.
                biased;
                () = self.around.shutdown.begun() => return,
                message = self.queue.recv() => match message {
                    Some(message) => self.answer_all(message),
                    None => return,
                },
                refilled = self.refills.next() => self.parked.extend(refilled),
                changed = self.around.demand.changed() => if changed.is_err() { return },
                changed = self.around.link.changed() => if changed.is_err() { return },
                changed = self.around.catalogue.changed() => if changed.is_err() { return },
                () = time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    /// Does what the policy says, and returns how long to wait when it says so.
    fn act(&mut self) -> Option<Duration> {
        loop {
            match policy::decide(self.situation()) {
                Decision::Rest => return None,
                Decision::Wait(wait) => return Some(wait),
                Decision::Refill(count) => (0..count).for_each(|_| self.refills.start()),
                Decision::Retire(count) => drop(self.parked.drain(..count)),
            }
        }
    }

    fn situation(&mut self) -> Situation {
        let now = Instant::now();
        let lacking = self.parked.len() + self.refills.len() < self.stock.target;
        let lacking_since = lacking.then(|| self.lacking_since.unwrap_or(now));
        self.lacking_since = lacking_since;
        let open = self.around.link.borrow_and_update().is_up()
            && self.around.catalogue.borrow_and_update().find(&self.template).is_some();
        Situation {
            parked: self.parked.len(),
            refilling: self.refills.len(),
            target: self.stock.target,
            refills_max: self.refills_max,
            demand: *self.around.demand.borrow_and_update(),
            open,
            since_take: self.last_take.map(|at| now.saturating_duration_since(at)),
            lacking_for: lacking_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            pause: self.refills.pause(now),
        }
    }

    fn answer_all(&mut self, first: Message) {
        self.answer(first);
        while let Ok(next) = self.queue.try_recv() {
            self.answer(next);
        }
    }

    fn answer(&mut self, message: Message) {
        // Askers that left need no answer; a capsule in an answer that nobody takes is destroyed by its drop.
        match message {
            Message::Take { reply } => {
                let held = self.parked.pop_front();
                self.count(held.is_some());
                let _left = reply.send(held);
            }
            Message::Adopt { held, kept } => {
                let room = self.parked.len() + self.refills.len() < self.stock.target;
                if room {
                    self.parked.push_back(held);
                }
                let _left = kept.send(room);
            }
            Message::Gone { id } => {
                if self.remove(id).is_some() {
                    tracing::warn!(capsule.id = %id, template = self.template, "parked capsule ended");
                }
            }
            Message::ClaimedElsewhere { id } => {
                if let Some(held) = self.remove(id) {
                    tracing::warn!(capsule.id = %id, "parked capsule was claimed past the pool");
                    held.given_away();
                }
            }
            Message::Parked { reply } => {
                let _left = reply.send(self.parked.iter().map(Held::id).collect());
            }
            Message::SetTarget { target, reply } => {
                self.stock.target = target;
                self.act();
                self.publish();
                let _left = reply.send(self.stock.clone());
            }
        }
    }

    fn count(&mut self, hit: bool) {
        self.last_take = Some(Instant::now());
        if hit {
            self.stock.hits += 1;
        } else {
            self.stock.misses += 1;
        }
        metrics::take(&self.template, hit);
    }

    fn remove(&mut self, id: CapsuleId) -> Option<Held> {
        let position = self.parked.iter().position(|held| held.id() == id)?;
        self.parked.remove(position)
    }

    fn publish(&mut self) {
        self.stock.parked = self.parked.len();
        self.stock.refilling = self.refills.len();
        metrics::pool(&self.template, self.stock.target, self.stock.parked, self.stock.refilling);
        self.published.send_if_modified(|published| {
            let changed = *published != self.stock;
            if changed {
                published.clone_from(&self.stock);
            }
            changed
        });
    }
}
