//! How everybody but its task sees a capsule.

use super::{
    activity::{Activities, Activity},
    capture::Figures,
    console::Console,
    disk::Place,
    settings::Settings,
    state::{Decision, Denied, Request, State},
    timeouts::Timeouts,
};
use crate::{
    error::AgentError,
    guest::Guest,
    memory::stats::Stats,
    network::policy::Policy,
    snapshot::{generation::Generation, store::Durability},
    template::build::now_ms,
    usage::{history::Sample, meter::Meter},
};
use hearth_proto::{id::CapsuleId, wire::agent as wire};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, AgentError>>;

/// What the task is asked.
pub enum Message {
    /// Let the vCPUs run, for a user, who may reach this; without it, what it could reach before.
    Claim(Option<Policy>, Reply<Guest>),
    /// Go to disk. Answered with the figures of the pause, if it was in this agent's life.
    Pause(Reply<Option<Figures>>),
    /// Come back from disk. Answered with the time it took; zero when it runs.
    Resume(Reply<Duration>),
    /// Be copied and run on.
    Capture(Capture),
    /// Become a restore of this snapshot. Answered with the time it took.
    RollBack(Arc<Generation>, Reply<Duration>),
    /// Have a disk of this many MiB.
    GrowDisk(u64, Reply<()>),
    /// Give everything back; answered when it is.
    Destroy(oneshot::Sender<()>),
    /// The agent stops: as destroy, but a paused capsule stays on disk.
    Leave(oneshot::Sender<()>),
    /// The agent stops and another one follows: a capsule that runs or is parked does so on.
    LetGo(oneshot::Sender<()>),
    /// The agent stops and this cannot be kept: destroy it, and leave the reason to the next agent.
    GiveUp(String, oneshot::Sender<()>),
    /// Private memory and pager statistics.
    Measure(oneshot::Sender<Measured>),
    /// Have other timeouts, and a new lifetime. Answered with what holds then.
    SetTimeouts(Change, Reply<Timeouts>),
}

/// A change of timeouts.
pub type Change = Box<dyn FnOnce(Timeouts) -> Timeouts + Send>;

/// A capsule is to be copied.
#[derive(Debug)]
pub struct Capture {
    /// Key of the new generation. One that is only for this process may be an older one's, of a paused capsule.
    pub key: String,
    /// Whether it is to outlive this process.
    pub durability: Durability,
    /// Where the copy goes.
    pub reply: Reply<Shot>,
}

/// A copy of a capsule.
pub struct Shot {
    /// The copy.
    pub generation: Arc<Generation>,
    /// How it was made; none for a paused capsule, which was copied before.
    pub figures: Option<Figures>,
    /// The capsule's settings, for copies that run.
    pub settings: Settings,
}

impl std::fmt::Debug for Shot {
    /// Without the environment: it may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shot").field("generation", &self.generation.key()).finish_non_exhaustive()
    }
}

/// What a capsule uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    /// Private_Dirty of VMM and pager.
    pub private_kb: u64,
    /// What its pager did.
    pub pager: Stats,
}

/// What does not change about a capsule.
#[derive(Debug)]
pub struct Facts {
    /// Its id.
    pub id: CapsuleId,
    /// The template it was restored from.
    pub template: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u64,
    /// Milliseconds since the epoch.
    pub created_at_ms: i64,
}

/// A handle. Clones are of one capsule.
#[derive(Debug, Clone)]
pub struct Handle {
    /// What does not change.
    pub facts: Arc<Facts>,
    pub(super) disk: Arc<Place>,
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) state: watch::Receiver<State>,
    pub(super) guest: watch::Receiver<Option<Guest>>,
    /// Whether it comes back from disk when it is used: the agent paused it by itself.
    pub(super) wakes: Arc<AtomicBool>,
    pub(super) activities: Activities,
    pub(super) unresponsive: Arc<AtomicBool>,
    /// Set when it is to end: what waits for its guest need not wait any longer.
    pub(super) doomed: CancellationToken,
    /// What it uses.
    pub meter: Arc<Meter>,
    pub(super) network: watch::Receiver<Policy>,
    /// What its guest writes to its console.
    pub console: Arc<Console>,
}

impl Handle {
    /// The state now.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// A watch of the state.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Waits until the restore is done. Cancel safe.
    pub async fn started(&self) -> Result<(), AgentError> {
        let mut state = self.state.clone();
        let state = state
            .wait_for(|state| *state != State::Starting)
            .await
            .map_err(|_| AgentError::Ended("its task is gone".to_owned()))?
            .clone();
        match state {
            State::Failed(reason) => Err(AgentError::Ended(reason)),
            State::Stopping | State::Stopped => Err(AgentError::Ended("destroyed".to_owned())),
            State::Starting
            | State::Parked
            | State::Running
            | State::Pausing
            | State::Paused
            | State::Resuming
            | State::Snapshotting => Ok(()),
        }
    }

    /// Begins a use of it: while the result is held the capsule is not idle. Taken before [`Handle::guest`], and held as
    /// long as bytes flow.
    pub fn activity(&self) -> Activity {
        self.activities.begin()
    }

    /// Whether its guest has not answered several times in a row.
    pub fn is_unresponsive(&self) -> bool {
        self.unresponsive.load(Ordering::Relaxed)
    }

    /// Changes its timeouts and begins its lifetime anew. Refused unless it lives.
    pub async fn set_timeouts(
        &self,
        change: impl FnOnce(Timeouts) -> Timeouts + Send + 'static,
    ) -> Result<Timeouts, AgentError> {
        self.settled(Request::Use).await?;
        self.ask(|reply| Message::SetTimeouts(Box::new(change), reply)).await
    }

    /// A watch of the guest: replaced when the capsule begins a new life, none while it has none.
    pub fn watch_guest(&self) -> watch::Receiver<Option<Guest>> {
        self.guest.clone()
    }

    /// The guest, for bytes. A parked capsule is claimed on the way; one that comes back in a moment is waited for.
    /// Refused unless it lives, or the agent paused it by itself: then it is resumed. Cancel safe.
    pub async fn guest(&self) -> Result<Guest, AgentError> {
        if self.wakes() && self.state() == State::Paused {
            self.resume().await?;
        }
        let _use = self.activity();
        if self.settled(Request::Use).await? == Decision::Nothing
            && let Some(guest) = self.guest.borrow().clone()
        {
            return Ok(guest);
        }
        self.claim(None).await
    }

    /// Transfers a parked capsule to its user: vCPUs run, and it may reach what is given. Without, a running one stays as
    /// it is.
    pub async fn claim(&self, network: Option<Policy>) -> Result<Guest, AgentError> {
        self.settled(Request::Claim).await?;
        self.ask(|reply| Message::Claim(network, reply)).await
    }

    /// Puts it on disk. A pause under way is joined, anything else under way refuses it at once.
    pub async fn pause(&self) -> Result<Option<Figures>, AgentError> {
        self.pause_so(false).await
    }

    /// Puts it on disk until it is used: the agent's own decision. What is under way is waited for.
    pub async fn suspend(&self) -> Result<Option<Figures>, AgentError> {
        let mut state = self.state.clone();
        let is_settled = |state: &State| !matches!(state, State::Resuming | State::Snapshotting);
        state.wait_for(is_settled).await.map_err(|_| self.ended())?;
        self.pause_so(true).await
    }

    async fn pause_so(&self, wakes: bool) -> Result<Option<Figures>, AgentError> {
        let decision = self.state.borrow().decide(Request::Pause)?;
        if let Decision::Move(_) = decision {
            self.wakes.store(wakes, Ordering::SeqCst);
        }
        self.ask(Message::Pause).await
    }

    /// Whether it comes back from disk when it is used.
    pub(super) fn wakes(&self) -> bool {
        self.wakes.load(Ordering::SeqCst)
    }

    /// Brings it back from disk. A resume under way is joined, anything else under way refuses it at once.
    pub async fn resume(&self) -> Result<Duration, AgentError> {
        self.state.borrow().decide(Request::Resume)?;
        self.ask(Message::Resume).await
    }

    /// Copies it; a running one runs on. Refused at once while anything else is under way.
    pub async fn capture(&self, key: String, durability: Durability) -> Result<Shot, AgentError> {
        self.state.borrow().decide(Request::Capture)?;
        self.ask(|reply| Message::Capture(Capture { key, durability, reply })).await
    }

    /// Makes it a restore of a snapshot. Refused at once while anything else is under way.
    pub async fn roll_back(&self, to: Arc<Generation>) -> Result<Duration, AgentError> {
        self.state.borrow().decide(Request::Rollback)?;
        self.ask(|reply| Message::RollBack(to, reply)).await
    }

    /// Decides a request, after what it joins is over.
    pub(super) async fn settled(&self, request: Request) -> Result<Decision, AgentError> {
        let mut state = self.state.clone();
        loop {
            let decision = state.borrow_and_update().decide(request)?;
            if decision != Decision::Join {
                return Ok(decision);
            }
            state.changed().await.map_err(|_| self.ended())?;
        }
    }

    pub(super) async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, AgentError> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).await.map_err(|_| self.ended())?;
        answer.await.map_err(|_| self.ended())?
    }

    /// Ends its task for the agent's stop: a paused capsule stays on disk, any other is destroyed.
    pub async fn leave(&self) {
        self.doomed.cancel();
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::Leave(reply)).await.is_ok() {
            // No answer: its task ended on its own, which is what was wanted.
            let _ = answer.await;
        }
    }

    /// Ends its task for the agent's stop and leaves the capsule to the next agent. One that is just being restored is
    /// destroyed: nobody was told of it.
    pub async fn let_go(&self) {
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::LetGo(reply)).await.is_ok() {
            // No answer: its task ended on its own.
            let _ = answer.await;
        }
    }

    /// Ends it at the agent's stop, and leaves the reason for whoever asks the next agent about it.
    pub async fn give_up(&self, reason: String) {
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::GiveUp(reason, reply)).await.is_ok() {
            // No answer: its task ended on its own.
            let _ = answer.await;
        }
    }

    /// Ends the capsule; returns when all it had is given back.
    pub async fn destroy(&self) {
        self.doomed.cancel();
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::Destroy(reply)).await.is_ok() {
            // No answer: its task ended on its own, which is what was wanted.
            let _ = answer.await;
        }
    }

    /// What it uses now; nothing when it is gone.
    pub async fn measure(&self) -> Measured {
        self.meter.sample(now_ms());
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::Measure(reply)).await.is_err() {
            return Measured::default();
        }
        answer.await.unwrap_or_default()
    }

    fn ended(&self) -> AgentError {
        AgentError::Denied(Denied { state: self.state() })
    }

    /// The wire form.
    pub fn wire(&self, measured: Option<Measured>) -> wire::Capsule {
        let state_now = self.state();
        let unresponsive = self.is_unresponsive() && state_now == State::Running;
        let (state, mut reason) = state_now.wire();
        if unresponsive {
            reason = "the guest does not answer".to_owned();
        }
        let measured = measured.unwrap_or_default();
        let (disk_mb, disk_used_mb) = self.disk.measure();
        let Sample { cpu_us, private_bytes, shared_bytes, disk_bytes, received_bytes, sent_bytes, .. } =
            self.meter.newest();
        wire::Capsule {
            capsule_id: self.facts.id.to_string(),
            template: self.facts.template.clone(),
            state: state.into(),
            reason,
            vcpus: self.facts.vcpus,
            memory_mb: self.facts.memory_mb,
            created_at_ms: self.facts.created_at_ms,
            faults: measured.pager.get(crate::memory::stats::Counter::Faults),
            private_kb: measured.private_kb,
            disk_mb,
            disk_used_mb,
            cpu_us,
            private_bytes,
            shared_bytes,
            disk_bytes,
            received_bytes,
            sent_bytes,
            last_active_at_ms: now_ms() - self.activities.last().elapsed().as_millis() as i64,
            unresponsive,
            network: Some(super::network::wire(&self.network.borrow())),
        }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Claim(..) => "Claim",
            Self::Pause(_) => "Pause",
            Self::Resume(_) => "Resume",
            Self::Capture(_) => "Capture",
            Self::RollBack(..) => "RollBack",
            Self::Destroy(_) => "Destroy",
            Self::Leave(_) => "Leave",
            Self::LetGo(_) => "LetGo",
            Self::GiveUp(..) => "GiveUp",
            Self::GrowDisk(..) => "GrowDisk",
            Self::Measure(_) => "Measure",
            Self::SetTimeouts(..) => "SetTimeouts",
        })
    }
}
