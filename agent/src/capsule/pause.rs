//! The part of a capsule's task that captures it, puts it on disk, and brings it back.
//!
//! ```text
//!  Running ──▶ Pausing: guest prepares ▸ vCPUs stop ▸ capture ▸ publish ▸ record ▸ VMM is given up ──▶ Paused
//!     ▲            └── a step failed: vCPUs run, guest is activated again ──▶ Running                    │
//!     └────────────────── Resuming: restore of the generation ▸ record is removed ◀────────────────────┘
//! ```
//!
//! The record is what makes a capsule paused: a crash before it was written loses a running capsule, as any crash does;
//! a crash after it finds a paused one.

use super::{
    capture::{self, CaptureError, Captured, Figures, Order, blocking},
    death,
    handle::{Capture, Message, Reply, Shot},
    ledger::Phase,
    paused::PausedRecord,
    restore::restore,
    room::Room,
    runner::{End, Life, Runner, Turn, Wish},
    settings::Settings,
    source::Source,
    state::{Decision, Denied, Happening, Request, State},
};
use crate::{
    error::AgentError,
    guest::{GuestError, Identity},
    snapshot::{
        generation::{Generation, Generations},
        store::Durability,
    },
    steps::{step, step_from, step_took},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// The guest gives its user processes five seconds to stop, and syncs its disk.
const PREPARE_DEADLINE: Duration = Duration::from_secs(30);
/// A guest that has not answered is given this long to go on.
const GO_ON_DEADLINE: Duration = Duration::from_secs(5);
/// A restore that takes longer than this is given up.
const RESTORE_DEADLINE: Duration = Duration::from_secs(60);

/// A step failed.
struct Setback {
    error: AgentError,
    /// Why it could not be undone, if so: the capsule is lost.
    fatal: Option<String>,
}

/// What a paused capsule is resumed from.
pub(super) struct Rest {
    /// Key of the generation.
    pub(super) key: String,
    /// Of the pause; none when that was before the agent's start.
    pub(super) figures: Option<Figures>,
}

impl Rest {
    /// Bytes on disk, where they are known.
    pub(super) fn bytes(&self) -> u64 {
        self.figures.map_or(0, |figures| figures.bytes)
    }
}

impl Runner {
    /// Pauses a running capsule. `None`: it runs on.
    pub(super) async fn pause(&mut self, life: &Life, reply: Reply<Option<Figures>>) -> Option<Turn> {
        match self.decide(Request::Pause) {
            Ok(Decision::Move(next)) => self.enter(next),
            Ok(Decision::Nothing | Decision::Join) => return answer(reply, Ok(None)),
            Err(denied) => return answer(reply, Err(denied.into())),
        }
        self.pause_now(life, reply).await
    }

    /// Pauses a capsule whose state says already that it is being paused. `None`: it runs on.
    pub(super) async fn pause_now(&mut self, life: &Life, reply: Reply<Option<Figures>>) -> Option<Turn> {
        let key = Generations::new_key();
        match self.put_on_disk(life, &key).await {
            Ok(figures) => {
                self.handle.disk.set(self.parts.generations.upper(&key));
                self.happened(Happening::Paused);
                step_took("pause", figures.total);
                tracing::info!(?figures, "capsule paused");
                answer(reply, Ok(Some(figures)));
                Some(Turn::Paused(Rest { key, figures: Some(figures) }))
            }
            Err(setback) => self.set_back(setback, reply),
        }
    }

    fn decide(&self, request: Request) -> Result<Decision, Denied> {
        self.state.borrow().decide(request)
    }

    async fn put_on_disk(&mut self, life: &Life, key: &str) -> Result<Figures, Setback> {
        let start = Instant::now();
        let mut figures = Figures::default();
        let captured = self.shoot(life, key, &mut figures).await?;
        let publish = Instant::now();
        let (generations, records) = (self.parts.generations.clone(), self.parts.paused.clone());
        let settings = Settings { timeouts: self.timeouts_kept(), ..self.settings.clone() };
        let mut record = PausedRecord::new(&self.handle.facts, key, &settings);
        record.wakes = self.handle.wakes();
        let published: Result<Arc<Generation>, AgentError> = blocking(move || {
            let generation = captured.publish(&generations, Durability::Synced)?;
            if let Err(error) = records.write(&record) {
                generations.delete(generation.key())?;
                return Err(error.into());
            }
            Ok(generation)
        })
        .await;
        match published {
            Ok(generation) => {
                self.settings = settings;
                figures.publish = publish.elapsed();
                figures.bytes = generation.snapshot.disk_bytes();
                figures.total = start.elapsed();
                // vCPUs never run again here.
                figures.stood_still = figures.total - figures.prepare;
                step_took("publish", figures.publish);
                Ok(figures)
            }
            Err(error) => Err(self.run_on(life, error).await),
        }
    }

    /// Captures a running capsule, which then runs on; the answer comes when the capture is published.
    pub(super) async fn capture(&mut self, life: &Life, order: Capture) -> Option<Turn> {
        let Capture { key, durability, reply } = order;
        match self.decide(Request::Capture) {
            Ok(Decision::Move(next)) => self.enter(next),
            Ok(Decision::Nothing | Decision::Join) => {
                return answer(reply, Err(Denied { state: self.state.borrow().clone() }.into()));
            }
            Err(denied) => return answer(reply, Err(denied.into())),
        }
        let start = Instant::now();
        let mut figures = Figures::default();
        let captured = match self.shoot(life, &key, &mut figures).await {
            Ok(captured) => captured,
            Err(setback) => return self.set_back(setback, reply),
        };
        if let Err(reason) = self.go_on(life).await {
            let error = AgentError::Ended(reason.clone());
            return self.set_back(Setback { error, fatal: Some(reason) }, reply);
        }
        figures.stood_still = start.elapsed() - figures.prepare;
        step_took("stood_still", figures.stood_still);
        self.happened(Happening::Runs);
        let (generations, settings) = (self.parts.generations.clone(), self.settings.clone());
        // Not this task's any more: the capsule can be used while the disk is written.
        self.parts.shutdown.tasks().spawn(async move {
            let publish = Instant::now();
            let published = blocking(move || captured.publish(&generations, durability)).await;
            answer(
                reply,
                published.map(|generation| {
                    figures.publish = publish.elapsed();
                    figures.bytes = generation.snapshot.disk_bytes();
                    figures.total = start.elapsed();
                    step_took("publish", figures.publish);
                    tracing::info!(?figures, "capsule captured");
                    Shot { generation, figures: Some(figures), settings }
                }),
            );
        });
        None
    }

    /// The guest prepares, the vCPUs stop, the state is copied. After an error the capsule runs on, or is lost.
    async fn shoot(&mut self, life: &Life, key: &str, figures: &mut Figures) -> Result<Captured, Setback> {
        if self.handle.is_unresponsive() {
            return Err(Setback { error: AgentError::Unresponsive, fatal: None });
        }
        let prepare = Instant::now();
        if let Err(error) = capture::settle(&life.vmm).await {
            return Err(Setback { error: error.into(), fatal: None });
        }
        if let Err(error) = life.vmm.enter(Phase::Capturing) {
            return Err(Setback { error: CaptureError::record(error).into(), fatal: None });
        }
        let prepared = tokio::select! {
            prepared = timeout(PREPARE_DEADLINE, life.guest.prepare(Vec::new())) => prepared,
            reason = death::of(&life.vmm) => {
                return Err(Setback { error: AgentError::Ended(reason.clone()), fatal: Some(reason) });
            }
            // Whoever ends it does not wait for a guest that may never answer.
            () = self.handle.doomed.cancelled() => {
                return Err(Setback { error: AgentError::Ended("destroyed".to_owned()), fatal: None });
            }
        };
        figures.prepare = prepare.elapsed();
        step("prepare", prepare);
        match prepared {
            Ok(Ok(())) => {}
            // The guest has undone it itself.
            Ok(Err(error @ GuestError::Refused(_))) => {
                self.captured(life);
                return Err(Setback { error: error.into(), fatal: None });
            }
            Ok(Err(error)) => return Err(self.let_be(life, error).await),
            Err(_) => return Err(self.let_be(life, GuestError::Deadline("Prepare")).await),
        }
        let capture = Instant::now();
        let order = Order { key: key.to_owned(), capsule: self.handle.facts.id };
        let captured = capture::capture(&life.vmm, &life.base, &self.parts.generations, order, figures).await;
        step("capture", capture);
        match captured {
            Ok(captured) => Ok(captured),
            Err(error) => Err(self.run_on(life, error.into()).await),
        }
    }

    /// The guest did not say that it is prepared. Its vCPUs have run all the time: if it does not answer now either, it
    /// is left as it is, and told to go on when it does.
    async fn let_be(&mut self, life: &Life, error: GuestError) -> Setback {
        let went_on = timeout(GO_ON_DEADLINE, self.go_on(life)).await.map_err(|_| String::new());
        let fatal = match went_on.flatten() {
            Ok(()) => None,
            Err(reason) if !life.vmm.is_alive() => Some(format!("{error}; and then: {reason}")),
            Err(_) => {
                self.clock.owes_identity = true;
                None
            }
        };
        Setback { error: error.into(), fatal }
    }

    /// Undoes what was begun, because of `error`.
    async fn run_on(&mut self, life: &Life, error: AgentError) -> Setback {
        let fatal = self.go_on(life).await.err().map(|reason| format!("{error}; and then: {reason}"));
        Setback { error, fatal }
    }

    /// vCPUs run and the guest serves again, as the same capsule.
    pub(super) async fn go_on(&mut self, life: &Life) -> Result<(), String> {
        life.vmm.resume().await.map_err(|error| error.to_string())?;
        let identity =
            Identity { hostname: self.handle.facts.id.to_string(), env: self.settings.env.clone() };
        let activated = tokio::select! {
            activated = life.guest.activate(identity) => activated,
            reason = death::of(&life.vmm) => return Err(reason),
        };
        match activated {
            Ok(_) => {
                self.captured(life);
                Ok(())
            }
            Err(_) if !life.vmm.is_alive() => Err(death::of(&life.vmm).await),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Notes that nothing of a capture is left to be undone. Were this lost, the next agent would undo it again, which
    /// does no harm.
    fn captured(&self, life: &Life) {
        if let Err(error) = life.vmm.enter(Phase::Running) {
            tracing::warn!(%error, "the VMM's record");
        }
    }

    fn set_back<T>(&mut self, setback: Setback, reply: Reply<T>) -> Option<Turn> {
        let Setback { error, fatal } = setback;
        tracing::warn!(error = hearth_service::telemetry::chain(&error), "a capture failed");
        if fatal.is_none() {
            self.happened(Happening::Runs);
        }
        answer(reply, Err(error));
        fatal.map(|reason| Turn::Ended(End::Died(reason)))
    }

    /// Replaces a running capsule by one of its snapshots. It runs on, as it is, when that fails.
    pub(super) async fn roll_back(&mut self, to: Arc<Generation>, reply: Reply<Duration>) -> Option<Turn> {
        match self.decide(Request::Rollback) {
            Ok(Decision::Move(next)) => self.enter(next),
            Ok(Decision::Nothing | Decision::Join) => return answer(reply, Ok(Duration::ZERO)),
            Err(denied) => return answer(reply, Err(denied.into())),
        }
        let start = Instant::now();
        match self.restore_own(Source::Generation(to)).await {
            Ok(life) => {
                self.begin(&life);
                step_from("rollback", "generation", start);
                answer(reply, Ok(start.elapsed()));
                Some(Turn::Lives(life))
            }
            Err(error) => {
                self.happened(Happening::Runs);
                answer(reply, Err(error))
            }
        }
    }

    /// Serves requests while there is no VMM.
    pub(super) async fn rest(&mut self, rest: Rest) -> Turn {
        while let Some(message) = self.queue.recv().await {
            let turn = match message {
                Message::Pause(reply) => answer(reply, Ok(rest.figures)),
                Message::Resume(reply) => self.wake(&rest, None, reply).await,
                Message::RollBack(to, reply) => self.wake(&rest, Some(to), reply).await,
                Message::Capture(order) => self.capture_resting(&rest, order).await,
                Message::Destroy(reply) => {
                    self.state.send_replace(State::Stopping);
                    if let Err(error) = self.forget(&rest).await {
                        tracing::error!(%error, "a destroyed capsule's files are left");
                    }
                    Some(Turn::Ended(End::Destroyed(vec![reply])))
                }
                Message::Leave(reply) | Message::LetGo(reply) | Message::GiveUp(_, reply) => {
                    Some(Turn::Ended(End::Left(Some(reply))))
                }
                other @ (Message::Claim(..)
                | Message::Measure(_)
                | Message::GrowDisk(..)
                | Message::SetTimeouts(..)) => {
                    self.refuse(other);
                    None
                }
            };
            if let Some(turn) = turn {
                return turn;
            }
        }
        Turn::Ended(End::Left(None))
    }

    /// Restores a paused capsule, from its pause or (rolled back) from one of its snapshots. It stays paused when that
    /// fails.
    async fn wake(
        &mut self,
        rest: &Rest,
        to: Option<Arc<Generation>>,
        reply: Reply<Duration>,
    ) -> Option<Turn> {
        let request = if to.is_some() { Request::Rollback } else { Request::Resume };
        match self.decide(request) {
            Ok(Decision::Move(next)) => self.enter(next),
            Ok(Decision::Nothing | Decision::Join) => return answer(reply, Ok(Duration::ZERO)),
            Err(denied) => return answer(reply, Err(denied.into())),
        }
        let start = Instant::now();
        let woken = match self.parts.shutdown.token().is_cancelled() {
            true => Err(AgentError::Stopping),
            false => self.wake_up(rest, to).await,
        };
        match woken {
            Ok(life) => {
                self.begin(&life);
                step_from("resume_capsule", "generation", start);
                answer(reply, Ok(start.elapsed()));
                Some(Turn::Lives(life))
            }
            Err(error) => {
                tracing::warn!(error = hearth_service::telemetry::chain(&error), "a resume failed");
                self.happened(Happening::Paused);
                answer(reply, Err(error))
            }
        }
    }

    async fn wake_up(&mut self, rest: &Rest, to: Option<Arc<Generation>>) -> Result<Life, AgentError> {
        let generation = match to {
            Some(generation) => generation,
            None => self.generation(&rest.key).await?,
        };
        let source = Source::Generation(generation);
        let room = Room::look(&self.parts, &source)?;
        self.parts.registry.fits(self.handle.facts.id, &room)?;
        let life = self.restore_own(source).await?;
        // From here on it is what it does now, not what it was; were the record left, a crash would turn it back.
        self.forget(rest).await?;
        Ok(life)
    }

    /// A restore of this capsule under its own id.
    async fn restore_own(&mut self, source: Source) -> Result<Life, AgentError> {
        let wish = Wish { id: self.handle.facts.id, park: false, settings: self.settings.clone() };
        let facts = self.handle.facts.clone();
        match timeout(RESTORE_DEADLINE, restore(&self.parts.templates, &source, wish, Some(&facts))).await {
            Ok(restored) => restored,
            Err(_) => Err(AgentError::Ended("the restore took too long and was given up".to_owned())),
        }
    }

    /// A new life serves; streams of the old one end.
    fn begin(&mut self, life: &Life) {
        self.guest.send_replace(Some(life.guest.clone()));
        self.handle.disk.set(life.vmm.upper());
        self.happened(Happening::Runs);
    }

    async fn capture_resting(&mut self, rest: &Rest, order: Capture) -> Option<Turn> {
        let Capture { key, durability, reply } = order;
        let generation = match self.generation(&rest.key).await {
            Ok(generation) => generation,
            Err(error) => return answer(reply, Err(error)),
        };
        let generations = self.parts.generations.clone();
        let shot = match durability {
            // Held until its user lets go, also when the capsule is resumed meanwhile.
            Durability::Transient => Ok(generation),
            Durability::Synced => blocking(move || Ok(generations.name(&generation, &key)?)).await,
        };
        answer(
            reply,
            shot.map(|generation| Shot { generation, figures: None, settings: self.settings.clone() }),
        )
    }

    async fn generation(&self, key: &str) -> Result<Arc<Generation>, AgentError> {
        let (generations, key) = (self.parts.generations.clone(), key.to_owned());
        blocking(move || Ok(generations.get(&key)?)).await
    }

    /// Removes the record and the generation of a pause.
    async fn forget(&self, rest: &Rest) -> Result<(), AgentError> {
        let (generations, records) = (self.parts.generations.clone(), self.parts.paused.clone());
        let (id, key) = (self.handle.facts.id, rest.key.clone());
        blocking(move || {
            records.remove(id)?;
            generations.delete(&key)?;
            Ok(())
        })
        .await
    }
}

/// Answers; the caller may have gone.
fn answer<T>(reply: Reply<T>, result: Result<T, AgentError>) -> Option<Turn> {
    let _ = reply.send(result);
    None
}
