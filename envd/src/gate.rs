//! The gate before every call: which phase the capsule is in, and who may pass.
//!
//! ```text
//! Fresh ──Activate──▶ Activating ──▶ Active ──Prepare──▶ Preparing ──▶ Prepared
//!                        ▲  │           │ ▲                   │             │
//!                        │  └▶ Closed   │ └──── not frozen ───┘             │
//!                        └──────┴───────┴──────────── Activate ◀────────────┘
//! ```
//! `Prepared` is what a snapshot holds: without token and environment, open for `Activate` only.

use std::sync::{Mutex, MutexGuard, PoisonError};
use subtle::ConstantTimeEq;

/// Where the capsule is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Booted, never activated.
    Fresh,
    /// An `Activate` is under way.
    Activating,
    /// Serving.
    Active,
    /// A `Prepare` is under way.
    Preparing,
    /// Ready for a snapshot, or just restored from one.
    Prepared,
    /// An activation failed: nothing is served until one succeeds.
    Closed,
}

/// What a call wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// The first call after a restore.
    Activate,
    /// The last call before a snapshot.
    Prepare,
    /// Everything else.
    Work,
}

/// What the call's token is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// No token is set, so none can be asked for.
    NotSet,
    /// The token that is set.
    Right,
    /// Another one, or none.
    Wrong,
}

/// Why a call does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The token is missing or not the capsule's.
    #[error("the token is missing or wrong")]
    Token,
    /// Only `Activate` is answered.
    #[error("the capsule is not activated")]
    NotActivated,
    /// An `Activate` or `Prepare` is under way.
    #[error("an activation or a preparation is under way")]
    Busy,
}

/// (pure) Decides a call: the phase to move to, or why it does not pass.
pub fn decide(phase: Phase, proof: Proof, call: Call) -> Result<Phase, Denied> {
    match (phase, proof, call) {
        (_, Proof::Wrong, _) => Err(Denied::Token),
        (Phase::Activating | Phase::Preparing, _, Call::Activate | Call::Prepare) => Err(Denied::Busy),
        (Phase::Activating | Phase::Preparing, _, Call::Work) => Err(Denied::NotActivated),
        (_, _, Call::Activate) => Ok(Phase::Activating),
        (Phase::Active, Proof::Right, Call::Prepare) => Ok(Phase::Preparing),
        (Phase::Active, Proof::Right, Call::Work) => Ok(Phase::Active),
        // Active without a token does not happen; if it did, it must not serve.
        (Phase::Active, Proof::NotSet, _) => Err(Denied::NotActivated),
        (Phase::Fresh | Phase::Prepared | Phase::Closed, _, _) => Err(Denied::NotActivated),
    }
}

/// The phase and the token, which lives in memory only.
pub struct Gate {
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    token: Option<String>,
}

impl Gate {
    /// The gate of a guest that just booted.
    pub fn new() -> Self {
        Self { state: Mutex::new(State { phase: Phase::Fresh, token: None }) }
    }

    /// Lets a call pass that changes no phase.
    pub fn work(&self, token: Option<&str>) -> Result<(), Denied> {
        let state = self.lock();
        decide(state.phase, prove(&state, token), Call::Work).map(drop)
    }

    /// Lets an `Activate` or a `Prepare` pass; the returned guard must say how it ended.
    pub fn begin(&self, token: Option<&str>, call: Call) -> Result<Transition<'_>, Denied> {
        let mut state = self.lock();
        let next = decide(state.phase, prove(&state, token), call)?;
        let before = std::mem::replace(&mut state.phase, next);
        // A prepare that fails leaves the capsule as it was; an activation that fails leaves it closed.
        let fallback = if next == Phase::Preparing { before } else { Phase::Closed };
        Ok(Transition { gate: self, fallback })
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    // The state is valid after every statement, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// A change of phase under way. Dropped without an outcome it counts as failed.
pub struct Transition<'a> {
    gate: &'a Gate,
    fallback: Phase,
}

impl Transition<'_> {
    /// The capsule serves; every later call must carry `token`.
    pub fn activated(mut self, token: String) {
        self.gate.lock().token = Some(token);
        self.fallback = Phase::Active;
    }

    /// The capsule may be snapshotted; the token is forgotten.
    pub fn prepared(mut self) {
        self.gate.lock().token = None;
        self.fallback = Phase::Prepared;
    }
}

impl Drop for Transition<'_> {
    fn drop(&mut self) {
        self.gate.lock().phase = self.fallback;
    }
}

fn prove(state: &State, token: Option<&str>) -> Proof {
    match (&state.token, token) {
        (None, _) => Proof::NotSet,
        (Some(set), Some(given)) if bool::from(set.as_bytes().ct_eq(given.as_bytes())) => Proof::Right,
        (Some(_), _) => Proof::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 6] =
        [Phase::Fresh, Phase::Activating, Phase::Active, Phase::Preparing, Phase::Prepared, Phase::Closed];

    #[test]
    fn only_an_active_capsule_works_and_only_for_the_token() {
        for phase in PHASES {
            for proof in [Proof::NotSet, Proof::Right, Proof::Wrong] {
                for call in [Call::Work, Call::Prepare] {
                    let passes = decide(phase, proof, call).is_ok();
                    assert_eq!(
                        passes,
                        phase == Phase::Active && proof == Proof::Right,
                        "{phase:?} {proof:?} {call:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_wrong_token_never_passes_and_two_activations_never_overlap() {
        for phase in PHASES {
            assert_eq!(decide(phase, Proof::Wrong, Call::Activate), Err(Denied::Token));
            let busy = matches!(phase, Phase::Activating | Phase::Preparing);
            assert_eq!(decide(phase, Proof::NotSet, Call::Activate).is_err(), busy, "{phase:?}");
        }
    }

    #[test]
    fn a_life_from_boot_to_snapshot_and_back() {
        let gate = Gate::new();
        assert_eq!(gate.work(Some("a")), Err(Denied::NotActivated));
        gate.begin(None, Call::Activate).unwrap().activated("a".to_owned());
        assert_eq!(gate.work(Some("a")), Ok(()));
        assert_eq!(gate.work(Some("b")), Err(Denied::Token));
        assert_eq!(gate.work(None), Err(Denied::Token));
        assert!(gate.begin(None, Call::Activate).is_err(), "the old token is needed");
        drop(gate.begin(Some("a"), Call::Prepare).unwrap());
        assert_eq!(gate.phase(), Phase::Active, "a failed prepare leaves it running");
        gate.begin(Some("a"), Call::Prepare).unwrap().prepared();
        assert_eq!(gate.work(Some("a")), Err(Denied::NotActivated));
        drop(gate.begin(None, Call::Activate).unwrap());
        assert_eq!(gate.phase(), Phase::Closed, "a failed activation fails closed");
        gate.begin(None, Call::Activate).unwrap().activated("c".to_owned());
        assert_eq!(gate.work(Some("c")), Ok(()));
    }
}
