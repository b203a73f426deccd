//! How everybody but its task sees a capsule.

use super::{
    capture::Figures,
    settings::Settings,
    state::{Decision, Denied, Request, State},
};
use crate::{
    error::AgentError,
    guest::Guest,
    memory::stats::Stats,
    network::policy::Policy,
    snapshot::{generation::Generation, store::Durability},
};
use hearth_proto::{id::CapsuleId, wire::agent as wire};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, AgentError>>;

/// What the task is asked.
#[derive(Debug)]
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
    /// Give everything back; answered when it is.
    Destroy(oneshot::Sender<()>),
    /// The agent stops: as destroy, but a paused capsule stays on disk.
    Leave(oneshot::Sender<()>),
    /// Private memory and pager statistics.
    Measure(oneshot::Sender<Measured>),
}

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
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) state: watch::Receiver<State>,
    pub(super) guest: watch::Receiver<Option<Guest>>,
    pub(super) network: watch::Receiver<Policy>,
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

    /// A watch of the guest: replaced when the capsule begins a new life, none while it has none.
    pub fn watch_guest(&self) -> watch::Receiver<Option<Guest>> {
        self.guest.clone()
    }

    /// The guest, for bytes. A parked capsule is claimed on the way; one that comes back in a moment is waited for.
    /// Refused unless it lives. Cancel safe.
    pub async fn guest(&self) -> Result<Guest, AgentError> {
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
        self.state.borrow().decide(Request::Pause)?;
        self.ask(Message::Pause).await
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
    async fn settled(&self, request: Request) -> Result<Decision, AgentError> {
        let mut state = self.state.clone();
        loop {
            let decision = state.borrow_and_update().decide(request)?;
            if decision != Decision::Join {
                return Ok(decision);
            }
            state.changed().await.map_err(|_| self.ended())?;
        }
    }

    async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, AgentError> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).await.map_err(|_| self.ended())?;
        answer.await.map_err(|_| self.ended())?
    }

    /// Ends its task for the agent's stop: a paused capsule stays on disk, any other is destroyed.
    pub async fn leave(&self) {
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::Leave(reply)).await.is_ok() {
            // No answer: its task ended on its own, which is what was wanted.
            let _ = answer.await;
        }
    }

    /// Ends the capsule; returns when all it had is given back.
    pub async fn destroy(&self) {
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::Destroy(reply)).await.is_ok() {
            // No answer: its task ended on its own, which is what was wanted.
            let _ = answer.await;
        }
    }

    /// What it uses now; nothing when it is gone.
    pub async fn measure(&self) -> Measured {
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
        let (state, reason) = self.state().wire();
        let measured = measured.unwrap_or_default();
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
            network: Some(super::network::wire(&self.network.borrow())),
        }
    }
}
