//! What may be done with a capsule now, given its state and what is under way. Pure; and the place in the book that
//! whatever is under way holds.

use super::{Record, state::State};
use crate::error::Refused;
use tokio::sync::watch;

/// What can be under way with a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pause,
    Resume,
    Fork,
    Snapshot,
    Rollback,
    Update,
}

impl Kind {
    /// For people: what the capsule is doing.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "being paused",
            Self::Resume => "being resumed",
            Self::Fork => "being forked",
            Self::Snapshot => "being kept as a snapshot",
            Self::Rollback => "being rolled back",
            Self::Update => "being changed",
        }
    }

    /// Its name in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Fork => "fork",
            Self::Snapshot => "snapshot",
            Self::Rollback => "rollback",
            Self::Update => "update",
        }
    }
}

/// What becomes of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Go,
    /// What is under way reaches it: wait for that.
    Join,
    /// It is as asked already.
    Nothing,
    /// Something else is under way.
    Busy(Kind),
    /// Not in this state.
    Wrong,
}

/// Decides a wish.
pub(crate) fn admit(state: State, under_way: Option<Kind>, asked: Kind) -> Admission {
    match (state, asked) {
        (State::Starting | State::Stopping | State::Stopped | State::Failed | State::Missing, _) => {
            return Admission::Wrong;
        }
        (State::Running | State::Paused, _) => {}
    }
    match (under_way, asked) {
        (Some(Kind::Pause), Kind::Pause) | (Some(Kind::Resume), Kind::Resume) => Admission::Join,
        (Some(other), _) => Admission::Busy(other),
        (None, Kind::Pause) if state == State::Paused => Admission::Nothing,
        (None, Kind::Resume) if state == State::Running => Admission::Nothing,
        (None, _) => Admission::Go,
    }
}

/// What came of an operation, for all who wait for it.
pub(crate) type Outcome = Result<Record, Refused>;

/// Held by whoever does it. Dropped without an outcome, after a panic say, the place is free again.
#[derive(Debug)]
pub(crate) struct Ticket {
    outcome: watch::Sender<Option<Outcome>>,
}

impl Ticket {
    /// Tells all who joined.
    pub(crate) fn done(self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }
}

/// The place in the book of what is under way.
#[derive(Debug)]
pub(crate) struct Slot {
    kind: Kind,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// Waits for an operation that somebody else does.
#[derive(Debug)]
pub(crate) struct Joined(watch::Receiver<Option<Outcome>>);

impl Slot {
    /// The place, and what its holder needs.
    pub(crate) fn new(kind: Kind) -> (Self, Ticket) {
        let (sender, outcome) = watch::channel(None);
        (Self { kind, outcome }, Ticket { outcome: sender })
    }

    /// What is under way; none when it is over.
    pub(crate) fn under_way(&self) -> Option<Kind> {
        self.outcome.has_changed().is_ok().then_some(self.kind)
    }

    /// For one more who waits.
    pub(crate) fn join(&self) -> Joined {
        Joined(self.outcome.clone())
    }
}

impl Joined {
    /// What came of it. Ends when the operation does, which has a deadline. Cancel safe.
    pub(crate) async fn outcome(mut self) -> Outcome {
        match self.0.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(Refused::Internal)),
            // Its holder panicked.
            Err(_) => Err(Refused::Internal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [Kind; 6] =
        [Kind::Pause, Kind::Resume, Kind::Fork, Kind::Snapshot, Kind::Rollback, Kind::Update];

    fn kind() -> impl Strategy<Value = Kind> {
        prop::sample::select(KINDS.to_vec())
    }

    proptest! {
        #[test]
        fn nothing_begins_beside_another_and_only_the_same_joins(
            state in prop::sample::select(State::ALL.to_vec()),
            under_way in prop::option::of(kind()),
            asked in kind(),
        ) {
            match admit(state, under_way, asked) {
                Admission::Go => prop_assert_eq!(under_way, None),
                Admission::Join => prop_assert_eq!(under_way, Some(asked)),
                Admission::Busy(other) => prop_assert_eq!(under_way, Some(other)),
                Admission::Nothing => prop_assert!(matches!(
                    (state, asked),
                    (State::Paused, Kind::Pause) | (State::Running, Kind::Resume)
                )),
                Admission::Wrong => prop_assert!(!matches!(state, State::Running | State::Paused)),
            }
        }
    }

    #[tokio::test]
    async fn a_place_is_free_again_when_its_holder_is_gone() {
        let (slot, ticket) = Slot::new(Kind::Pause);
        let joined = slot.join();
        assert_eq!(slot.under_way(), Some(Kind::Pause));
        drop(ticket);
        assert_eq!(slot.under_way(), None);
        assert_eq!(joined.outcome().await, Err(Refused::Internal));
    }

    #[tokio::test]
    async fn all_who_joined_hear_what_came_of_it() {
        let (slot, ticket) = Slot::new(Kind::Resume);
        let joined = [slot.join(), slot.join()];
        ticket.done(Err(Refused::Away("the host is away".to_owned())));
        assert_eq!(slot.under_way(), None);
        for joined in joined {
            assert_eq!(joined.outcome().await, Err(Refused::Away("the host is away".to_owned())));
        }
    }
}
