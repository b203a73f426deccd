//! The task that owns one capsule: restores it, lets it run, notices its death, gives everything back.

use super::{
    activity::Activities,
    console::Console,
    death,
    handle::{Facts, Handle, Measured, Message},
    health::Health,
    idle::Clock,
    ledger::Phase,
    pause::Rest,
    paused::PausedRecord,
    restore::restore,
    settings::Settings,
    source::Source,
    state::{Decision, Denied, Happening, Request, State},
};
use crate::{
    agent::Parts,
    error::AgentError,
    guest::Guest,
    network::policy::Policy,
    steps::step_from,
    template::{Template, build::now_ms},
    usage::{self, meter::Meter},
    vmm::guard::Vmm,
};
use hearth_proto::id::CapsuleId;
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// A pager has read the rest of a dead VMM's console within this.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Messages that may wait for the task.
const QUEUE: usize = 32;

/// What a restore is asked for.
#[derive(Debug)]
pub struct Wish {
    /// The new capsule's id.
    pub id: CapsuleId,
    /// Stop the vCPUs when it is ready.
    pub park: bool,
    /// What it is to be.
    pub settings: Settings,
}

/// Starts the task of a new capsule. `template` is what it is said to come from.
pub fn start(parts: &Arc<Parts>, source: Source, template: String, wish: Wish) -> Handle {
    let size = source.base().snapshot.manifest.size;
    let facts = Facts {
        id: wish.id,
        template,
        vcpus: size.vcpus,
        memory_mb: size.memory_mb,
        created_at_ms: now_ms(),
    };
    let mut settings = wish.settings.clone();
    settings.timeouts = settings.timeouts.renewed();
    let (runner, handle) = Runner::new(parts, facts, State::Starting, settings);
    let span = tracing::info_span!("capsule", capsule.id = %wish.id);
    parts.shutdown.tasks().spawn(runner.run(source, wish).instrument(span));
    handle
}

/// Starts the task of a capsule that an earlier agent paused.
pub fn rest(parts: &Arc<Parts>, record: PausedRecord) -> Handle {
    let span = tracing::info_span!("capsule", capsule.id = %record.id);
    let facts = Facts {
        id: record.id,
        template: record.template,
        vcpus: record.vcpus,
        memory_mb: record.memory_mb,
        created_at_ms: record.created_at_ms,
    };
    let (mut runner, handle) = Runner::new(parts, facts, State::Paused, record.settings);
    handle.wakes.store(record.wakes, Ordering::SeqCst);
    let rest = Rest { key: record.generation, figures: None };
    runner.handle.disk.set(parts.generations.upper(&rest.key));
    parts.shutdown.tasks().spawn(
        async move {
            let end = runner.lives(Turn::Paused(rest)).await;
            runner.end(end).await;
        }
        .instrument(span),
    );
    handle
}

/// The task's own side of a capsule.
pub(super) struct Runner {
    pub(super) parts: Arc<Parts>,
    pub(super) handle: Handle,
    pub(super) queue: mpsc::Receiver<Message>,
    pub(super) state: watch::Sender<State>,
    pub(super) guest: watch::Sender<Option<Guest>>,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    network: watch::Sender<Policy>,
}

/// A capsule that has a VMM.
pub(crate) struct Life {
    pub(crate) vmm: Vmm,
    pub(crate) guest: Guest,
    /// What the memory is compared with at a capture.
    pub(crate) base: Arc<Template>,
}

/// Why the loop of a capsule with a VMM, or of one without, ended.
pub(super) enum Turn {
    Lives(Life),
    Paused(Rest),
    Ended(End),
}

/// How a capsule's task ends.
pub(super) enum End {
    Destroyed(Vec<oneshot::Sender<()>>),
    Died(String),
    /// The agent stops; the capsule stays as it is, on disk or running.
    Left(Option<oneshot::Sender<()>>),
}

impl Runner {
    pub(super) fn new(parts: &Arc<Parts>, facts: Facts, state: State, settings: Settings) -> (Self, Handle) {
        let (messages, queue) = mpsc::channel(QUEUE);
        let (state, state_watch) = watch::channel(state);
        let (guest, guest_watch) = watch::channel(None);
        let (network, network_watch) = watch::channel(settings.network.clone());
        let handle = Handle {
            meter: Arc::new(Meter::new(parts.usage.read(facts.id))),
            console: Arc::new(Console::of(&parts.templates.launcher.layout.consoles(), facts.id)),
            facts: Arc::new(facts),
            disk: Arc::default(),
            messages,
            state: state_watch,
            guest: guest_watch,
            network: network_watch,
            wakes: Arc::default(),
            activities: Activities::default(),
            unresponsive: Arc::default(),
            doomed: CancellationToken::new(),
        };
        handle.meter.set_policy(settings.network.kind());
        let (parts, clock) = (parts.clone(), Clock::start());
        (Self { parts, handle: handle.clone(), queue, state, guest, settings, clock, network }, handle)
    }

    async fn run(mut self, source: Source, wish: Wish) {
        let park = wish.park;
        let end = match self.start(source, wish).await {
            Start::Done(life) => {
                let source = if park { "pool" } else { "demand" };
                metrics::counter!("hearth_agent_restores_total", "source" => source).increment(1);
                self.guest.send_replace(Some(life.guest.clone()));
                self.handle.disk.set(life.vmm.upper());
                self.happened(Happening::Restored { parked: park });
                self.lives(Turn::Lives(life)).await
            }
            Start::Ended(end) => end,
        };
        self.end(end).await;
    }

    /// From life to life, over any number of pauses, to the end.
    pub(super) async fn lives(&mut self, mut turn: Turn) -> End {
        loop {
            turn = match turn {
                Turn::Lives(life) => {
                    self.handle.meter.begin(life.vmm.probe());
                    self.handle.console.begin(life.vmm.folder());
                    self.begin_clock();
                    let next = self.live(&life).await;
                    self.note(&life.vmm, &next).await;
                    if !matches!(next, Turn::Ended(End::Left(_))) {
                        self.handle.console.keep();
                    }
                    self.set_unresponsive(false);
                    if let Turn::Paused(_) = next {
                        // Streams of this life end, with the reason.
                        self.guest.send_replace(None);
                    } else {
                        self.settings.timeouts = self.timeouts_kept();
                    }
                    let on_disk = if let Turn::Paused(rest) = &next { rest.bytes() } else { 0 };
                    self.handle.meter.end(now_ms(), on_disk);
                    match next {
                        Turn::Ended(End::Left(_)) => life.vmm.let_go(),
                        Turn::Lives(_) | Turn::Paused(_) | Turn::Ended(_) => drop(life),
                    }
                    next
                }
                Turn::Paused(rest) => self.rest(rest).await,
                Turn::Ended(end) => return end,
            };
        }
    }

    pub(super) async fn end(mut self, end: End) {
        match end {
            End::Destroyed(replies) => {
                self.happened(Happening::Released);
                for reply in replies {
                    // The caller may have gone.
                    let _ = reply.send(());
                }
            }
            End::Died(reason) => {
                tracing::warn!(reason, "capsule failed");
                metrics::counter!("hearth_agent_capsule_failures_total").increment(1);
                self.happened(Happening::Died(reason));
            }
            End::Left(reply) => {
                if let Some(reply) = reply {
                    // The caller may have gone.
                    let _ = reply.send(());
                }
            }
        }
        if self.state.borrow().is_end() {
            self.handle.console.end();
            self.parts.usage.remove(self.handle.facts.id);
        } else {
            self.parts.usage.write(self.handle.facts.id, &self.handle.meter.history());
        }
        self.guest.send_replace(None);
        self.queue.close();
        while let Some(message) = self.queue.recv().await {
            self.refuse(message);
        }
    }

    /// Moves to a state that was decided.
    pub(super) fn enter(&mut self, state: State) {
        self.state.send_replace(state);
        self.parts.registry.changed(&self.handle);
    }

    pub(super) fn happened(&mut self, happening: Happening) {
        self.state.send_modify(|state| *state = state.clone().after(happening));
        self.parts.registry.changed(&self.handle);
    }

    /// Restores, unless the capsule is destroyed meanwhile.
    async fn start(&mut self, source: Source, wish: Wish) -> Start {
        let facts = self.handle.facts.clone();
        let restore = restore(&self.parts.templates, &source, wish, Some(&facts));
        tokio::pin!(restore);
        loop {
            tokio::select! {
                biased;
                message = self.queue.recv() => match message {
                    Some(
                        Message::Destroy(reply)
                        | Message::Leave(reply)
                        | Message::LetGo(reply)
                        | Message::GiveUp(_, reply),
                    ) => {
                        self.state.send_replace(State::Stopping);
                        // Dropping the restore undoes what it has done.
                        return Start::Ended(End::Destroyed(vec![reply]));
                    }
                    Some(other) => refuse(&self.state.borrow(), other),
                    None => return Start::Ended(End::Destroyed(Vec::new())),
                },
                restored = &mut restore => return match restored {
                    Ok(life) => Start::Done(life),
                    Err(error) => {
                        Start::Ended(End::Died(hearth_service::telemetry::chain(&error)))
                    }
                },
            }
        }
    }

    /// Serves requests until this life of the capsule ends.
    async fn live(&mut self, life: &Life) -> Turn {
        let Life { vmm, guest, .. } = life;
        let mut health = Health::new();
        let death = death::of(vmm);
        tokio::pin!(death);
        loop {
            let due = self.due();
            let is_running = *self.state.borrow() == State::Running;
            tokio::select! {
                // A death is noticed before more is asked of the dead.
                biased;
                reason = &mut death => return Turn::Ended(End::Died(reason)),
                message = self.queue.recv() => {
                    let Some(message) = message else { return Turn::Ended(End::Destroyed(Vec::new())) };
                    if let Some(turn) = self.serve(life, message).await {
                        return turn;
                    }
                }
                () = due => {
                    if let Some(turn) = self.expire(life).await {
                        return turn;
                    }
                }
                answer = health.answer(guest, is_running) => self.heard(life, &mut health, answer).await,
            }
        }
    }

    /// Serves one request. `None`: this life goes on.
    async fn serve(&mut self, life: &Life, message: Message) -> Option<Turn> {
        match message {
            Message::Claim(network, reply) => {
                if let Err(error) = self.allow(&life.vmm, network).await {
                    // The caller may have gone; the capsule is as it was.
                    let _ = reply.send(Err(error));
                    return None;
                }
                let claimed = self.claim(&life.vmm).await.map(|()| life.guest.clone());
                let failed = claimed.as_ref().err().map(ToString::to_string);
                self.keep_settings(&life.vmm);
                // The caller may have gone; the capsule runs and is destroyed by its owner's lease.
                let _ = reply.send(claimed);
                failed.map(|reason| Turn::Ended(End::Died(reason)))
            }
            Message::Pause(reply) => self.pause(life, reply).await,
            Message::Capture(order) => self.capture(life, order).await,
            Message::RollBack(to, reply) => self.roll_back(to, reply).await,
            Message::Resume(reply) => {
                let decision = self.state.borrow().decide(Request::Resume);
                // The caller may have gone.
                let _ = reply.send(decision.map(|_| Duration::ZERO).map_err(AgentError::from));
                None
            }
            Message::GrowDisk(wanted_mb, reply) => {
                self.grow_disk(life, wanted_mb, reply).await;
                self.keep_settings(&life.vmm);
                None
            }
            Message::GiveUp(reason, reply) => {
                self.state.send_replace(State::Stopping);
                let failed = self.parts.templates.launcher.layout.failed();
                if let Err(error) = life.vmm.leave_reason(&failed, reason) {
                    tracing::error!(%error, "the reason why a capsule is lost could not be kept");
                }
                Some(Turn::Ended(End::Destroyed(vec![reply])))
            }
            Message::LetGo(reply) => Some(Turn::Ended(End::Left(Some(reply)))),
            Message::Destroy(reply) | Message::Leave(reply) => {
                self.state.send_replace(State::Stopping);
                // A crash from here on is followed by the end of this.
                if let Err(error) = life.vmm.enter(Phase::Stopping) {
                    tracing::warn!(%error, "the VMM's record");
                }
                Some(Turn::Ended(End::Destroyed(vec![reply])))
            }
            Message::Measure(reply) => {
                // The caller may have gone.
                let _ = reply.send(measure(&life.vmm));
                None
            }
            Message::SetTimeouts(change, reply) => {
                // The caller may have gone.
                let _ = reply.send(self.set_timeouts(change));
                self.keep_settings(&life.vmm);
                None
            }
        }
    }

    /// Notes on disk what the capsule is asked to be by now, for an agent that takes it over.
    fn keep_settings(&self, vmm: &Vmm) {
        let settings = Settings { timeouts: self.timeouts_kept(), ..self.settings.clone() };
        let noted = vmm.note(|record| {
            if let Some(life) = &mut record.life {
                life.settings = settings;
            }
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "an agent that takes the capsule over would not know of its new settings");
        }
    }

    /// Lets its user reach what is asked for.
    async fn allow(&mut self, vmm: &Vmm, network: Option<Policy>) -> Result<(), AgentError> {
        self.state.borrow().decide(Request::Claim)?;
        let Some(policy) = network else { return Ok(()) };
        super::network::allow(vmm, &policy).await?;
        self.handle.meter.set_policy(policy.kind());
        self.network.send_replace(policy.clone());
        self.settings.network = policy;
        Ok(())
    }

    /// Lets a parked capsule run.
    async fn claim(&mut self, vmm: &Vmm) -> Result<(), AgentError> {
        let decision = self.state.borrow().decide(Request::Claim)?;
        let Decision::Move(next) = decision else { return Ok(()) };
        let start = Instant::now();
        vmm.resume().await?;
        step_from("claim", "pool", start);
        self.begin_clock();
        self.enter(next);
        Ok(())
    }

    /// Logs the last words of a capsule that died.
    async fn note(&self, vmm: &Vmm, turn: &Turn) {
        if let Turn::Ended(End::Died(_)) = turn {
            if let Some(pager) = &vmm.pager {
                // It ends after the VMM, when it has read the last of the console. One that is stuck ends with the life.
                let _ = time::timeout(LAST_WORDS, pager.exited()).await;
            }
            tracing::warn!(console = vmm.console_end(), "console of a failed capsule");
        }
    }

    pub(super) fn refuse(&self, message: Message) {
        refuse(&self.state.borrow(), message);
    }
}

enum Start {
    Done(Life),
    Ended(End),
}

fn refuse(state: &State, message: Message) {
    fn denied<T>(state: &State) -> Result<T, AgentError> {
        Err(Denied { state: state.clone() }.into())
    }
    // Whoever asked may have gone.
    match message {
        Message::Claim(_, reply) => {
            let _ = reply.send(denied(state));
        }
        Message::Pause(reply) => {
            let _ = reply.send(denied(state));
        }
        Message::Resume(reply) | Message::RollBack(_, reply) => {
            let _ = reply.send(denied(state));
        }
        Message::Capture(order) => {
            let _ = order.reply.send(denied(state));
        }
        Message::GrowDisk(_, reply) => {
            let _ = reply.send(denied(state));
        }
        Message::Destroy(reply)
        | Message::Leave(reply)
        | Message::LetGo(reply)
        | Message::GiveUp(_, reply) => {
            let _ = reply.send(());
        }
        Message::Measure(reply) => {
            let _ = reply.send(Measured::default());
        }
        Message::SetTimeouts(_, reply) => {
            let _ = reply.send(denied(state));
        }
    }
}

fn measure(vmm: &Vmm) -> Measured {
    let mut private_kb = usage::private_dirty_kb(vmm.process.pid()).unwrap_or(0);
    if let Some(pager) = &vmm.pager {
        private_kb += usage::private_dirty_kb(pager.pid()).unwrap_or(0);
    }
    Measured { private_kb, pager: vmm.pager_stats().unwrap_or_default() }
}
