//! How everybody but its task sees a capsule.

use super::state::{Denied, Request, State};
use crate::{error::AgentError, guest::Guest, memory::stats::Stats};
use hearth_proto::{id::CapsuleId, wire::agent as wire};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// What the task is asked.
#[derive(Debug)]
pub enum Message {
    /// Let the vCPUs run, for a user.
    Claim(oneshot::Sender<Result<Guest, AgentError>>),
    /// Give everything back; answered when it is.
    Destroy(oneshot::Sender<()>),
    /// Private memory and pager statistics.
    Measure(oneshot::Sender<Measured>),
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
            State::Starting | State::Parked | State::Running => Ok(()),
        }
    }

    /// The guest, for bytes. A parked capsule is claimed on the way. Refused unless it lives.
    pub async fn guest(&self) -> Result<Guest, AgentError> {
        let running = match self.state.borrow().decide(Request::Use)? {
            None => self.guest.borrow().clone(),
            Some(_) => None,
        };
        match running {
            Some(guest) => Ok(guest),
            None => self.claim().await,
        }
    }

    /// Transfers a parked capsule to its user: vCPUs run. A running one stays as it is.
    pub async fn claim(&self) -> Result<Guest, AgentError> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Claim(reply)).await.map_err(|_| self.ended())?;
        answer.await.map_err(|_| self.ended())?
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
        }
    }
}
