//! Users' capsules in memory: all that live, and the last that ended. Pure: time is an argument.
//!
//! The rows are written behind; until they are, and while the database is away, the book is what is true.

use super::{
    Change, Record,
    state::{self, Action, Seen, State},
};
use hearth_proto::id::{CapsuleId, TeamId};
use std::collections::{HashMap, HashSet, VecDeque};
use time::{Duration, OffsetDateTime};

/// Ended capsules that are remembered, so that a read right after the end does not see an older row.
const ENDED_MAX: usize = 1024;

/// How often a capsule's last activity is written.
const ACTIVE_EVERY: Duration = Duration::seconds(30);

#[derive(Debug)]
struct Entry {
    record: Record,
    active_written: OffsetDateTime,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Book {
    entries: HashMap<CapsuleId, Entry>,
    ended: VecDeque<CapsuleId>,
}

/// What news leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// The row must follow.
    Write(Change),
    /// The capsule must go.
    Destroy,
}

/// Answer to the wish to end a capsule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing is known of it here.
    Unknown,
    /// It has ended already.
    Over,
    /// It is to be destroyed now; the row must follow, unless it says so already.
    Now(Option<Change>),
}

impl Book {
    pub(crate) fn insert(&mut self, record: Record) {
        let (id, over) = (record.id, record.state.is_over());
        let active_written = record.times.last_active.unwrap_or(record.times.created);
        if self.entries.insert(id, Entry { record, active_written }).is_none() && over {
            self.remember(id);
        }
    }

    /// A team's capsule. Another team's is not there.
    pub(crate) fn get(&self, team: TeamId, id: CapsuleId) -> Option<&Record> {
        self.entries.get(&id).map(|entry| &entry.record).filter(|record| record.team == team)
    }

    /// A team's capsules that have not ended, in no order.
    pub(crate) fn list(&self, team: TeamId) -> Vec<Record> {
        self.records().filter(|record| record.team == team && !record.state.is_over()).cloned().collect()
    }

    /// All capsules that should be on a host.
    pub(crate) fn active(&self) -> HashSet<CapsuleId> {
        self.records().filter(|record| !record.state.is_over()).map(|record| record.id).collect()
    }

    pub(crate) fn knows(&self, id: CapsuleId) -> bool {
        self.entries.contains_key(&id)
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.entries.values().map(|entry| &entry.record)
    }

    /// Its host says something about a capsule.
    pub(crate) fn observe(&mut self, id: CapsuleId, seen: Seen<'_>, now: OffsetDateTime) -> Effect {
        let Some(entry) = self.entries.get(&id) else { return Effect::Nothing };
        match state::decide(entry.record.state, seen) {
            Action::Nothing => Effect::Nothing,
            Action::Destroy => Effect::Destroy,
            Action::Record(state, reason) => {
                self.change(id, state, reason, now).map_or(Effect::Nothing, Effect::Write)
            }
        }
    }

    /// Its user wants a capsule gone.
    pub(crate) fn end(&mut self, team: TeamId, id: CapsuleId, now: OffsetDateTime) -> Ending {
        match self.get(team, id).map(|record| record.state) {
            None => Ending::Unknown,
            Some(State::Stopped) => Ending::Over,
            Some(State::Stopping) => Ending::Now(None),
            Some(State::Starting | State::Running | State::Paused | State::Missing | State::Failed) => {
                Ending::Now(self.change(id, State::Stopping, String::new(), now))
            }
        }
    }

    /// A capsule that was to be ended is gone.
    pub(crate) fn ended(&mut self, id: CapsuleId, now: OffsetDateTime) -> Option<Change> {
        let state = self.entries.get(&id)?.record.state;
        (state == State::Stopping).then(|| self.change(id, State::Stopped, String::new(), now)).flatten()
    }

    /// A capsule is used. True when that should be written.
    pub(crate) fn touch(&mut self, id: CapsuleId, now: OffsetDateTime) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.record.times.last_active = Some(now);
        let due = now - entry.active_written >= ACTIVE_EVERY;
        if due {
            entry.active_written = now;
        }
        due
    }

    fn change(&mut self, id: CapsuleId, state: State, reason: String, now: OffsetDateTime) -> Option<Change> {
        let record = &mut self.entries.get_mut(&id)?.record;
        record.state = state;
        record.reason.clone_from(&reason);
        record.times.updated = now;
        if state.is_over() {
            self.remember(id);
        }
        Some(Change { id, state, reason, at: now })
    }

    fn remember(&mut self, id: CapsuleId) {
        self.ended.push_back(id);
        if self.ended.len() > ENDED_MAX
            && let Some(oldest) = self.ended.pop_front()
            // A failed capsule that is being ended lives in the book once more.
            && self.entries.get(&oldest).is_some_and(|entry| entry.record.state.is_over())
        {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        capsule::{Labels, Times},
        host::observed::Live,
    };

    fn record(team: TeamId) -> Record {
        let now = OffsetDateTime::UNIX_EPOCH;
        Record {
            id: CapsuleId::new(),
            team,
            template: "code".to_owned(),
            host_id: "host".to_owned(),
            state: State::Running,
            reason: String::new(),
            vcpus: 1,
            memory_mb: 512,
            timeout_sec: 0,
            labels: Labels::default(),
            times: Times { created: now, started: Some(now), last_active: None, updated: now },
        }
    }

    fn second(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
    }

    #[test]
    fn another_teams_capsule_is_not_there() {
        let (mut book, team) = (Book::default(), TeamId::new());
        let record = record(team);
        book.insert(record.clone());
        assert!(book.get(team, record.id).is_some());
        assert!(book.get(TeamId::new(), record.id).is_none());
        assert_eq!(book.end(TeamId::new(), record.id, second(1)), Ending::Unknown);
        assert!(book.list(TeamId::new()).is_empty());
    }

    #[test]
    fn a_death_changes_the_record_and_asks_for_a_write() {
        let (mut book, team) = (Book::default(), TeamId::new());
        let record = record(team);
        book.insert(record.clone());
        let died = Live::Failed { reason: "killed".to_owned() };
        let effect = book.observe(record.id, Seen::Present(&died), second(5));
        let change =
            Change { id: record.id, state: State::Failed, reason: "killed".to_owned(), at: second(5) };
        assert_eq!(effect, Effect::Write(change));
        assert_eq!(book.get(team, record.id).unwrap().reason, "killed");
        assert!(book.list(team).is_empty() && book.active().is_empty());
        assert_eq!(book.observe(record.id, Seen::Present(&died), second(6)), Effect::Nothing);
    }

    #[test]
    fn ending_is_idempotent() {
        let (mut book, team) = (Book::default(), TeamId::new());
        let record = record(team);
        book.insert(record.clone());
        assert!(matches!(book.end(team, record.id, second(1)), Ending::Now(Some(_))));
        assert_eq!(book.end(team, record.id, second(2)), Ending::Now(None));
        assert_eq!(book.ended(record.id, second(3)).unwrap().state, State::Stopped);
        assert_eq!(book.ended(record.id, second(4)), None);
        assert_eq!(book.end(team, record.id, second(5)), Ending::Over);
    }

    #[test]
    fn ended_capsules_are_forgotten_in_the_end() {
        let (mut book, team) = (Book::default(), TeamId::new());
        for _ in 0..ENDED_MAX + 10 {
            let record = record(team);
            book.insert(record.clone());
            book.end(team, record.id, second(1));
            book.ended(record.id, second(2));
        }
        assert_eq!(book.entries.len(), ENDED_MAX);
    }

    #[test]
    fn activity_is_written_now_and_then() {
        let (mut book, team) = (Book::default(), TeamId::new());
        let record = record(team);
        book.insert(record.clone());
        let written: Vec<bool> = (0..65).map(|now| book.touch(record.id, second(now))).collect();
        assert_eq!(written.iter().filter(|written| **written).count(), 2);
        assert_eq!(book.get(team, record.id).unwrap().times.last_active, Some(second(64)));
    }
}
