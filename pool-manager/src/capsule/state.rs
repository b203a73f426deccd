//! What should be × what is → what to do, for a user's capsule. Pure.

use crate::host::observed::Live;

/// The state in a capsule's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    Starting,
    Running,
    /// On its host's disk; its host brings it back.
    Paused,
    /// Its user wants it gone.
    Stopping,
    Stopped,
    Failed,
    /// It should run, but its host does not know it.
    Missing,
}

/// A state's name that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a capsule state")]
pub(crate) struct UnknownState(String);

impl State {
    pub(crate) const ALL: [Self; 7] = [
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
        Self::Missing,
    ];

    /// As in the table's column.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Missing => "missing",
        }
    }

    /// From the table's column.
    pub(crate) fn parse(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }

    /// Whether it has processors and memory, or is about to.
    pub(crate) fn is_running(self) -> bool {
        match self {
            Self::Starting | Self::Running => true,
            Self::Paused | Self::Stopping | Self::Stopped | Self::Failed | Self::Missing => false,
        }
    }

    /// Whether nothing can happen to the capsule any more.
    pub(crate) fn is_over(self) -> bool {
        match self {
            Self::Stopped | Self::Failed => true,
            Self::Starting | Self::Running | Self::Paused | Self::Stopping | Self::Missing => false,
        }
    }
}

/// What should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Desired {
    Running,
    Stopped,
}

/// What a row's state says should be. A failed capsule is over: should its host still run it, that is a leftover.
pub(crate) fn desired(state: State) -> Desired {
    match state {
        State::Starting | State::Running | State::Paused | State::Missing => Desired::Running,
        State::Stopping | State::Stopped | State::Failed => Desired::Stopped,
    }
}

/// What its host says about a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen<'a> {
    /// The host does not know it.
    Absent,
    Present(&'a Live),
}

impl Seen<'_> {
    /// Whether the capsule will never run again.
    pub(crate) fn is_end(self) -> bool {
        match self {
            Self::Absent => false,
            Self::Present(live) => live.is_over(),
        }
    }
}

/// The name of an event, as in pool.proto, when a capsule goes from one state to another; none when it is of no interest.
pub(crate) fn event(from: State, to: State) -> Option<&'static str> {
    match (from, to) {
        (State::Missing, State::Running | State::Paused) => Some("found"),
        (State::Starting, State::Running) => Some("started"),
        (_, State::Running) => Some("resumed"),
        (_, State::Paused) => Some("paused"),
        (_, State::Stopped) => Some("destroyed"),
        (_, State::Failed) => Some("failed"),
        (_, State::Missing) => Some("missing"),
        (_, State::Starting | State::Stopping) => None,
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// Write down a new state and its reason.
    Record(State, String),
    /// Destroy it on its host.
    Destroy,
}

/// Decides from the row's state and what its host says.
pub(crate) fn decide(state: State, seen: Seen<'_>) -> Action {
    match desired(state) {
        Desired::Running => decide_running(state, seen),
        Desired::Stopped => decide_stopped(state, seen),
    }
}

fn decide_running(state: State, seen: Seen<'_>) -> Action {
    match seen {
        Seen::Absent if state == State::Missing => Action::Nothing,
        Seen::Absent => Action::Record(State::Missing, "its host does not know it".to_owned()),
        Seen::Present(Live::Running) if state == State::Running => Action::Nothing,
        Seen::Present(Live::Running) => Action::Record(State::Running, String::new()),
        Seen::Present(Live::Stopped { reason }) => Action::Record(State::Stopped, reason.clone()),
        Seen::Present(Live::Failed { reason }) => Action::Record(State::Failed, reason.clone()),
        Seen::Present(Live::Paused) if state == State::Paused => Action::Nothing,
        // It is kept, and runs again when it is asked to.
        Seen::Present(Live::Paused) => Action::Record(State::Paused, String::new()),
        // Old news, or on its way to something that will be said.
        Seen::Present(Live::Starting | Live::Parked | Live::Moving | Live::Stopping) => Action::Nothing,
    }
}

fn decide_stopped(state: State, seen: Seen<'_>) -> Action {
    match seen {
        Seen::Present(Live::Starting | Live::Parked | Live::Running | Live::Moving | Live::Paused) => {
            Action::Destroy
        }
        Seen::Present(Live::Stopping) => Action::Nothing,
        Seen::Absent | Seen::Present(Live::Stopped { .. } | Live::Failed { .. }) if state.is_over() => {
            Action::Nothing
        }
        Seen::Absent => Action::Record(State::Stopped, String::new()),
        // Its user wanted it gone, and gone it is; how is of no interest.
        Seen::Present(Live::Stopped { reason } | Live::Failed { reason }) => {
            Action::Record(State::Stopped, reason.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> impl Strategy<Value = State> {
        prop::sample::select(State::ALL.to_vec())
    }

    fn seen() -> impl Strategy<Value = Option<Live>> {
        let reason = "why".to_owned();
        prop::sample::select(vec![
            None,
            Some(Live::Starting),
            Some(Live::Parked),
            Some(Live::Running),
            Some(Live::Moving),
            Some(Live::Paused),
            Some(Live::Stopping),
            Some(Live::Stopped { reason: reason.clone() }),
            Some(Live::Failed { reason }),
        ])
    }

    fn of(live: Option<&Live>) -> Seen<'_> {
        live.map_or(Seen::Absent, Seen::Present)
    }

    proptest! {
        #[test]
        fn what_should_run_is_never_destroyed(state in state(), live in seen()) {
            if decide(state, of(live.as_ref())) == Action::Destroy {
                prop_assert_eq!(desired(state), Desired::Stopped);
            }
        }

        #[test]
        fn the_same_news_twice_is_recorded_once(state in state(), live in seen()) {
            if let Action::Record(next, _) = decide(state, of(live.as_ref())) {
                prop_assert_ne!(next, state);
                prop_assert_eq!(decide(next, of(live.as_ref())), Action::Nothing);
            }
        }

        #[test]
        fn what_is_over_stays_over(states in prop::collection::vec(seen(), 0..20), first in state()) {
            let mut state = first;
            for live in &states {
                let over = state.is_over();
                if let Action::Record(next, _) = decide(state, of(live.as_ref())) {
                    prop_assert!(!over, "{:?} became {:?}", state, next);
                    state = next;
                }
            }
        }

        #[test]
        fn a_stop_that_was_asked_for_is_not_forgotten(states in prop::collection::vec(seen(), 0..20)) {
            let mut state = State::Stopping;
            for live in &states {
                if let Action::Record(next, _) = decide(state, of(live.as_ref())) {
                    state = next;
                }
                prop_assert_eq!(desired(state), Desired::Stopped);
            }
        }
    }

    #[test]
    fn a_dead_capsule_is_recorded_with_its_reason() {
        let died = Live::Failed { reason: "the VMM was killed".to_owned() };
        assert_eq!(
            decide(State::Running, Seen::Present(&died)),
            Action::Record(State::Failed, "the VMM was killed".to_owned())
        );
    }

    #[test]
    fn a_missing_capsule_can_come_back() {
        assert!(matches!(decide(State::Running, Seen::Absent), Action::Record(State::Missing, _)));
        assert_eq!(
            decide(State::Missing, Seen::Present(&Live::Running)),
            Action::Record(State::Running, String::new())
        );
    }

    #[test]
    fn a_capsule_that_its_host_paused_is_kept_and_runs_again() {
        for state in [State::Running, State::Missing] {
            let paused = decide(state, Seen::Present(&Live::Paused));
            assert_eq!(paused, Action::Record(State::Paused, String::new()));
        }
        assert_eq!(
            decide(State::Paused, Seen::Present(&Live::Running)),
            Action::Record(State::Running, String::new())
        );
        assert!(matches!(decide(State::Paused, Seen::Absent), Action::Record(State::Missing, _)));
    }

    #[test]
    fn every_state_survives_its_column() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Ok(state));
        }
        assert!(State::parse("parked").is_err());
    }
}
