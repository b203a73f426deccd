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
    /// Being captured, to be given up.
    Pausing,
    /// On disk only.
    Paused,
    /// Being restored from one of its own generations.
    Resuming,
    /// Being captured, to run on.
    Snapshotting,
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
    /// Go to disk and give memory and processors back.
    Pause,
    /// Come back from disk.
    Resume,
    /// Be captured and run on; a paused one is captured already.
    Capture,
    /// Become one of its snapshots again.
    Rollback,
    /// Go away.
    Destroy,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The capsule moves to this state.
    Move(State),
    /// It is as asked already.
    Nothing,
    /// What is asked for is under way: wait for it, then ask again.
    Join,
}

/// What happens to a capsule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// The restore is done; `true`: it waits in a pool.
    Restored {
        /// vCPUs were stopped again.
        parked: bool,
    },
    /// It runs (again): resumed, captured, or a pause or rollback of it failed and undid itself.
    Runs,
    /// It is on disk only, or still is after a resume that failed.
    Paused,
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
    /// Decides a request. A request that conflicts with what is under way is refused; destroying never is.
    pub fn decide(&self, request: Request) -> Result<Decision, Denied> {
        use Decision::{Join, Move, Nothing};
        let decision = match (self, request) {
            (State::Stopped | State::Stopping | State::Failed(_), Request::Destroy) => Nothing,
            (_, Request::Destroy) => Move(State::Stopping),
            (State::Parked, Request::Claim | Request::Use) => Move(State::Running),
            (State::Running, Request::Claim | Request::Use | Request::Resume) => Nothing,
            (State::Resuming | State::Snapshotting, Request::Claim | Request::Use | Request::Resume) => Join,
            (State::Running, Request::Pause) => Move(State::Pausing),
            (State::Pausing, Request::Pause) => Join,
            (State::Paused, Request::Pause | Request::Capture) => Nothing,
            (State::Paused, Request::Resume) => Move(State::Resuming),
            (State::Running, Request::Capture) => Move(State::Snapshotting),
            (State::Running | State::Paused, Request::Rollback) => Move(State::Resuming),
            (
                State::Starting
                | State::Parked
                | State::Pausing
                | State::Paused
                | State::Resuming
                | State::Snapshotting
                | State::Stopping
                | State::Stopped
                | State::Failed(_),
                _,
            ) => return Err(Denied { state: self.clone() }),
        };
        Ok(decision)
    }

    /// The state after something happened. Ends are final: the first reason is kept.
    pub fn after(self, happening: Happening) -> State {
        match (self, happening) {
            (State::Starting, Happening::Restored { parked: true }) => State::Parked,
            (State::Starting, Happening::Restored { parked: false }) => State::Running,
            (State::Pausing | State::Resuming | State::Snapshotting, Happening::Runs) => State::Running,
            (State::Pausing | State::Resuming, Happening::Paused) => State::Paused,
            (State::Stopping, Happening::Died(_)) => State::Stopping,
            (state, Happening::Died(reason)) if !state.is_end() => State::Failed(reason),
            (state, Happening::Released) if !state.is_end() => State::Stopped,
            (
                state,
                Happening::Restored { .. }
                | Happening::Runs
                | Happening::Paused
                | Happening::Died(_)
                | Happening::Released,
            ) => state,
        }
    }

    /// Nothing more will happen to it.
    pub fn is_end(&self) -> bool {
        match self {
            State::Stopped | State::Failed(_) => true,
            State::Starting
            | State::Parked
            | State::Running
            | State::Pausing
            | State::Paused
            | State::Resuming
            | State::Snapshotting
            | State::Stopping => false,
        }
    }

    /// Whether it has, or is about to have, a VMM: a paused capsule costs no memory and no processor.
    pub fn is_living(&self) -> bool {
        !self.is_end() && *self != State::Paused
    }

    /// The state's word on the wire, and the reason of an end.
    pub fn wire(&self) -> (Wire, String) {
        match self {
            State::Starting => (Wire::Starting, String::new()),
            State::Parked => (Wire::Parked, String::new()),
            State::Running => (Wire::Running, String::new()),
            State::Pausing => (Wire::Pausing, String::new()),
            State::Paused => (Wire::Paused, String::new()),
            State::Resuming => (Wire::Resuming, String::new()),
            State::Snapshotting => (Wire::Snapshotting, String::new()),
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
            State::Pausing => f.write_str("pausing"),
            State::Paused => f.write_str("paused"),
            State::Resuming => f.write_str("resuming"),
            State::Snapshotting => f.write_str("snapshotting"),
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
            Just(State::Pausing),
            Just(State::Paused),
            Just(State::Resuming),
            Just(State::Snapshotting),
            Just(State::Stopping),
            Just(State::Stopped),
            "[a-z]{1,8}".prop_map(State::Failed),
        ]
    }

    fn any_happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            any::<bool>().prop_map(|parked| Happening::Restored { parked }),
            Just(Happening::Runs),
            Just(Happening::Paused),
            "[a-z]{1,8}".prop_map(Happening::Died),
            Just(Happening::Released),
        ]
    }

    fn any_request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::Claim),
            Just(Request::Use),
            Just(Request::Pause),
            Just(Request::Resume),
            Just(Request::Capture),
            Just(Request::Rollback),
            Just(Request::Destroy),
        ]
    }

    /// Something is under way that ends by itself.
    fn is_passing(state: &State) -> bool {
        matches!(
            state,
            State::Starting | State::Pausing | State::Resuming | State::Snapshotting | State::Stopping
        )
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
        fn only_a_living_capsule_is_used_and_one_that_comes_back_is_waited_for(state in any_state()) {
            let alive = matches!(state, State::Parked | State::Running);
            let coming = matches!(state, State::Resuming | State::Snapshotting);
            for request in [Request::Use, Request::Claim] {
                let decision = state.decide(request);
                prop_assert_eq!(decision.is_ok(), alive || coming);
                prop_assert_eq!(decision == Ok(Decision::Join), coming);
            }
        }

        #[test]
        fn what_is_under_way_is_joined_or_the_request_is_refused(state in any_state(), request in any_request()) {
            if is_passing(&state) && request != Request::Destroy {
                prop_assert!(!matches!(state.decide(request), Ok(Decision::Move(_) | Decision::Nothing)));
            }
        }

        #[test]
        fn joining_ends_when_what_is_under_way_does(state in any_state(), request in any_request()) {
            if state.decide(request) == Ok(Decision::Join) {
                for happening in [Happening::Runs, Happening::Paused, Happening::Released] {
                    let after = state.clone().after(happening);
                    prop_assert!(after == state || after.decide(request) != Ok(Decision::Join));
                }
            }
        }

        #[test]
        fn a_pause_or_resume_that_fails_can_be_asked_again(failed in any::<bool>()) {
            let Ok(Decision::Move(pausing)) = State::Running.decide(Request::Pause) else { panic!() };
            let state = pausing.after(if failed { Happening::Runs } else { Happening::Paused });
            let request = if failed { Request::Pause } else { Request::Resume };
            let Ok(Decision::Move(next)) = state.decide(request) else { panic!() };
            let state = next.after(Happening::Paused);
            prop_assert_eq!(state, State::Paused);
        }
    }
}
