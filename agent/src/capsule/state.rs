//! (pure) The states of a capsule and what may be asked of it in each.

use hearth_proto::wire::agent::CapsuleState as Wire;
use std::fmt;

/// Where a capsule is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Being restored.
    Starting,
    /// Restored and handshaken, vCPUs stopped.
    Parked,
    /// vCPUs run.
    Running,
    /// Being destroyed.
    Stopping,
    /// Gone, as asked.
    Stopped,
    /// Gone, with the reason.
    Failed(String),
}

/// What can be asked of a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Run for its user.
    Claim,
    /// Run code or a program in it.
    Use,
    /// Go away.
    Destroy,
}

/// What happens to a capsule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// The restore is done; `true`: it waits in a pool.
    Restored {
        /// vCPUs were stopped again.
        parked: bool,
    },
    /// It cannot go on.
    Died(String),
    /// All it had is given back.
    Released,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the capsule is {state}")]
pub struct Denied {
    /// The state it is in.
    pub state: State,
}

impl State {
    /// Decides a request: the state to move to, `None` when there is nothing to do, or why not.
    pub fn decide(&self, request: Request) -> Result<Option<State>, Denied> {
        match (self, request) {
            (State::Stopped | State::Stopping | State::Failed(_), Request::Destroy) => Ok(None),
            (State::Starting | State::Parked | State::Running, Request::Destroy) => Ok(Some(State::Stopping)),
            (State::Parked, Request::Claim) => Ok(Some(State::Running)),
            (State::Running, Request::Claim | Request::Use) => Ok(None),
            (State::Parked, Request::Use) => Ok(Some(State::Running)),
            (
                State::Starting | State::Stopping | State::Stopped | State::Failed(_),
                Request::Claim | Request::Use,
            ) => Err(Denied { state: self.clone() }),
        }
    }

    /// The state after something happened. Ends are final: the first reason is kept.
    pub fn after(self, happening: Happening) -> State {
        match (self, happening) {
            (State::Starting, Happening::Restored { parked: true }) => State::Parked,
            (State::Starting, Happening::Restored { parked: false }) => State::Running,
            (State::Starting | State::Parked | State::Running, Happening::Died(reason)) => {
                State::Failed(reason)
            }
            (State::Stopping, Happening::Died(_)) => State::Stopping,
            (State::Starting | State::Parked | State::Running | State::Stopping, Happening::Released) => {
                State::Stopped
            }
            (state, Happening::Restored { .. } | Happening::Died(_) | Happening::Released) => state,
        }
    }

    /// Nothing more will happen to it.
    pub fn is_end(&self) -> bool {
        match self {
            State::Stopped | State::Failed(_) => true,
            State::Starting | State::Parked | State::Running | State::Stopping => false,
        }
    }

    /// The state's word on the wire, and the reason of an end.
    pub fn wire(&self) -> (Wire, String) {
        match self {
            State::Starting => (Wire::Starting, String::new()),
            State::Parked => (Wire::Parked, String::new()),
            State::Running => (Wire::Running, String::new()),
            State::Stopping => (Wire::Stopping, String::new()),
            State::Stopped => (Wire::Stopped, String::new()),
            State::Failed(reason) => (Wire::Failed, reason.clone()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Starting => f.write_str("starting"),
            State::Parked => f.write_str("parked"),
            State::Running => f.write_str("running"),
            State::Stopping => f.write_str("stopping"),
            State::Stopped => f.write_str("stopped"),
            State::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_state() -> impl Strategy<Value = State> {
        prop_oneof![
            Just(State::Starting),
            Just(State::Parked),
            Just(State::Running),
            Just(State::Stopping),
            Just(State::Stopped),
            "[a-z]{1,8}".prop_map(State::Failed),
        ]
    }

    fn any_happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            any::<bool>().prop_map(|parked| Happening::Restored { parked }),
            "[a-z]{1,8}".prop_map(Happening::Died),
            Just(Happening::Released),
        ]
    }

    proptest! {
        #[test]
        fn destroy_is_never_refused(state in any_state()) {
            prop_assert!(state.decide(Request::Destroy).is_ok());
        }

        #[test]
        fn ends_are_final(state in any_state(), happenings in proptest::collection::vec(any_happening(), 0..8)) {
            let mut state = state;
            for happening in happenings {
                let before = state.clone();
                state = state.after(happening);
                if before.is_end() {
                    prop_assert_eq!(&state, &before);
                }
            }
        }

        #[test]
        fn only_a_living_capsule_is_used(state in any_state()) {
            let alive = matches!(state, State::Parked | State::Running);
            prop_assert_eq!(state.decide(Request::Use).is_ok(), alive);
            prop_assert_eq!(state.decide(Request::Claim).is_ok(), alive);
        }
    }
}
