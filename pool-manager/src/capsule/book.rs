//! Users' capsules in memory: all that live, and the last that ended. Pure: time is an argument.
//!
//! The rows are written behind; until they are, and while the database is away, the book is what is true.

use super::{
    Disk, Labels, PausedBy, Record,
    operation::{Admission, Joined, Kind, Slot, Ticket, admit},
    quota::{self, Amount, Limits, Reservation, Reserved},
    settings::Settings,
    state::{self, Action, Seen, State},
};
use crate::{error::Refused, host::observed::Figures};
use hearth_proto::id::{CapsuleId, TeamId};
use std::collections::{HashMap, HashSet, VecDeque};
use time::{Duration, OffsetDateTime};

/// Ended capsules that are remembered, so that a read right after the end does not see an older row.
const ENDED_MAX: usize = 1024;

/// How often a capsule's last activity, and what its disk takes, are written.
const ACTIVE_EVERY: Duration = Duration::seconds(30);

/// News this soon after a change may be older than it. What it hides is seen at the next comparison with the host.
const STALE_FOR: Duration = Duration::seconds(1);

#[derive(Debug)]
struct Entry {
    record: Record,
    slot: Option<Slot>,
    /// When the last operation was over.
    settled: Option<OffsetDateTime>,
    active_written: OffsetDateTime,
    /// What its host said last; none before the first time.
    cpu_us: Option<u64>,
}

impl Entry {
    fn under_way(&self) -> Option<Kind> {
        self.slot.as_ref().and_then(Slot::under_way)
    }

    fn view(&self) -> Record {
        Record { under_way: self.under_way(), ..self.record.clone() }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Book {
    entries: HashMap<CapsuleId, Entry>,
    ended: VecDeque<CapsuleId>,
    reserved: Reserved<TeamId>,
    /// Processor time since the last sample.
    cpu_us: HashMap<TeamId, u64>,
}

/// What news leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// The row must follow, and who listens hears the event.
    Write(Box<Record>, Option<&'static str>),
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
    /// It is to be destroyed now, where it is; the row must follow, unless it says so already.
    Now { record: Box<Record>, write: bool },
}

/// Answer to the wish to begin something.
#[derive(Debug)]
pub(crate) enum Begin {
    /// Not there, or another team's.
    Unknown,
    /// It may not be now.
    Refused(Refused),
    /// It is as asked. `write`: the row must follow nevertheless.
    Nothing { record: Box<Record>, write: bool },
    /// Somebody else is doing it.
    Join(Joined),
    /// Do it, and settle it with the ticket.
    Go { record: Box<Record>, ticket: Ticket, write: bool },
}

/// What an operation changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Edit {
    pub(crate) state: Option<State>,
    pub(crate) paused_by: Option<PausedBy>,
    pub(crate) disk: Option<Disk>,
    pub(crate) settings: Option<Settings>,
    pub(crate) labels: Option<Labels>,
}

/// A team at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TeamNow {
    pub(crate) team: TeamId,
    pub(crate) running: Amount,
    /// Since the last time this was asked.
    pub(crate) cpu_us: u64,
}

impl Book {
    pub(crate) fn insert(&mut self, record: Record) {
        let (id, over) = (record.id, record.state.is_over());
        let active_written = record.times.last_active.unwrap_or(record.times.created);
        let entry = Entry { record, slot: None, settled: None, active_written, cpu_us: None };
        if self.entries.insert(id, entry).is_none() && over {
            self.remember(id);
        }
    }

    /// A team's capsule. Another team's is not there.
    pub(crate) fn get(&self, team: TeamId, id: CapsuleId) -> Option<Record> {
        self.find(id).filter(|record| record.team == team)
    }

    /// A capsule, whoever's it is.
    pub(crate) fn find(&self, id: CapsuleId) -> Option<Record> {
        self.entries.get(&id).map(Entry::view)
    }

    /// A team's capsules, those that ended lately too, in no order.
    pub(crate) fn list(&self, team: TeamId) -> Vec<Record> {
        self.entries.values().filter(|entry| entry.record.team == team).map(Entry::view).collect()
    }

    /// To wait for what is under way with a capsule.
    pub(crate) fn joined(&self, id: CapsuleId) -> Option<Joined> {
        self.entries.get(&id)?.slot.as_ref().map(Slot::join)
    }

    /// All capsules that should be on some host, with its id.
    pub(crate) fn active(&self) -> impl Iterator<Item = (CapsuleId, &str)> {
        self.records()
            .filter(|record| !record.state.is_over())
            .map(|record| (record.id, record.host_id.as_str()))
    }

    pub(crate) fn knows(&self, id: CapsuleId) -> bool {
        self.entries.contains_key(&id)
    }

    /// What runs on each host.
    pub(crate) fn loads(&self) -> HashMap<String, Amount> {
        let mut loads: HashMap<String, Amount> = HashMap::new();
        for record in self.records().filter(|record| record.state.is_running()) {
            let load = loads.entry(record.host_id.clone()).or_default();
            *load = load.plus(Amount::of(1, record.vcpus, record.memory_mb));
        }
        loads
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.entries.values().map(|entry| &entry.record)
    }

    /// Every team with capsules, and what it used since this was asked last.
    pub(crate) fn sample(&mut self) -> Vec<TeamNow> {
        let mut cpu_us = std::mem::take(&mut self.cpu_us);
        let mut teams: HashMap<TeamId, Amount> =
            cpu_us.keys().map(|team| (*team, Amount::default())).collect();
        for record in self.records().filter(|record| !record.state.is_over()) {
            let running = teams.entry(record.team).or_default();
            if record.state.is_running() {
                *running = running.plus(Amount::of(1, record.vcpus, record.memory_mb));
            }
        }
        let now =
            |(team, running)| TeamNow { team, running, cpu_us: cpu_us.remove(&team).unwrap_or_default() };
        teams.into_iter().map(now).collect()
    }

    /// Keeps room for capsules of a team that are being made, within its limits.
    pub(crate) fn reserve(
        &mut self,
        team: TeamId,
        more: Amount,
        limits: Limits,
    ) -> Result<Reservation, Refused> {
        let of_team = |record: &&Record| record.team == team && record.state.is_running();
        let there = self
            .records()
            .filter(of_team)
            .fold(Amount::default(), |sum, record| sum.plus(Amount::of(1, record.vcpus, record.memory_mb)));
        quota::check(limits, there.plus(self.reserved.sum(&team)), more)?;
        Ok(self.reserved.add(team, more))
    }

    /// Its host says something about a capsule.
    pub(crate) fn observe(
        &mut self,
        id: CapsuleId,
        seen: Seen<'_>,
        figures: Figures,
        now: OffsetDateTime,
    ) -> Effect {
        let Some(entry) = self.entries.get_mut(&id) else { return Effect::Nothing };
        let due = measure(entry, figures, &mut self.cpu_us, now);
        // What is under way says itself what came of it; until then only an end is news.
        let stale = entry.settled.is_some_and(|settled| now - settled < STALE_FOR);
        if (stale || entry.under_way().is_some()) && !seen.is_end() && entry.record.state != State::Stopping {
            return Effect::Nothing;
        }
        match state::decide(entry.record.state, seen) {
            Action::Nothing if due => Effect::Write(Box::new(entry.record.clone()), None),
            Action::Nothing => Effect::Nothing,
            Action::Destroy => Effect::Destroy,
            Action::Record(state, reason) => self.changed(id, state, reason, now),
        }
    }

    /// A user wants something done with a capsule. A pause is known as its user's from here on, whatever becomes of it.
    pub(crate) fn begin(&mut self, team: TeamId, id: CapsuleId, kind: Kind, now: OffsetDateTime) -> Begin {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.record.team == team) else {
            return Begin::Unknown;
        };
        let admission = admit(entry.record.state, entry.under_way(), kind);
        let mut write = false;
        if kind == Kind::Pause && matches!(admission, Admission::Go | Admission::Nothing) {
            write = entry.record.paused_by != PausedBy::User;
            entry.record.paused_by = PausedBy::User;
            entry.record.times.updated = now;
        }
        match admission {
            Admission::Wrong => Begin::Refused(Refused::not_running(entry.record.state.as_str())),
            Admission::Busy(other) => {
                Begin::Refused(Refused::Conflict(format!("the capsule is {}", other.as_str())))
            }
            Admission::Nothing => Begin::Nothing { record: Box::new(entry.view()), write },
            Admission::Join => match &entry.slot {
                Some(slot) => Begin::Join(slot.join()),
                None => Begin::Refused(Refused::Internal),
            },
            Admission::Go => {
                let (slot, ticket) = Slot::new(kind);
                entry.slot = Some(slot);
                Begin::Go { record: Box::new(entry.record.clone()), ticket, write }
            }
        }
    }

    /// An operation is over. The capsule as it is now; none when it is not known any more.
    pub(crate) fn settle(&mut self, id: CapsuleId, edit: Edit, now: OffsetDateTime) -> Option<Record> {
        let entry = self.entries.get_mut(&id)?;
        (entry.slot, entry.settled) = (None, Some(now));
        let record = &mut entry.record;
        // It may have been ended, or have died, meanwhile.
        if let (Some(state), State::Running | State::Paused) = (edit.state, record.state) {
            record.state = state;
            record.reason.clear();
            if state == State::Running {
                record.times.last_active = Some(now);
            }
        }
        record.paused_by = edit.paused_by.unwrap_or(record.paused_by);
        record.disk = edit.disk.unwrap_or(record.disk);
        if let Some(settings) = edit.settings {
            record.settings = settings;
        }
        if let Some(labels) = edit.labels {
            record.labels = labels;
        }
        record.times.updated = now;
        Some(record.clone())
    }

    /// Its user wants a capsule gone.
    pub(crate) fn end(&mut self, team: TeamId, id: CapsuleId, now: OffsetDateTime) -> Ending {
        let Some(record) = self.get(team, id) else { return Ending::Unknown };
        match record.state {
            State::Stopped => Ending::Over,
            State::Stopping => Ending::Now { record: Box::new(record), write: false },
            State::Starting | State::Running | State::Paused | State::Missing | State::Failed => {
                match self.changed(id, State::Stopping, String::new(), now) {
                    Effect::Write(record, _) => Ending::Now { record, write: true },
                    Effect::Nothing | Effect::Destroy => Ending::Unknown,
                }
            }
        }
    }

    /// A capsule that was to be ended is gone.
    pub(crate) fn ended(&mut self, id: CapsuleId, now: OffsetDateTime) -> Effect {
        match self.entries.get(&id) {
            Some(entry) if entry.record.state == State::Stopping => {
                self.changed(id, State::Stopped, String::new(), now)
            }
            Some(_) | None => Effect::Nothing,
        }
    }

    /// A capsule is used. Its record when that should be written.
    pub(crate) fn touch(&mut self, id: CapsuleId, now: OffsetDateTime) -> Option<Record> {
        let entry = self.entries.get_mut(&id)?;
        entry.record.times.last_active = Some(now);
        let idle = entry.under_way().is_none();
        if idle && entry.record.state == State::Running && entry.record.paused_by == PausedBy::User {
            // A pause of its user's that came to nothing without an answer.
            entry.record.paused_by = PausedBy::Host;
        }
        let due = now - entry.active_written >= ACTIVE_EVERY;
        due.then(|| {
            entry.active_written = now;
            entry.record.clone()
        })
    }

    /// The capsules of hosts that are not there any more.
    pub(crate) fn homeless(&self, hosts: &HashSet<String>) -> Vec<CapsuleId> {
        self.active().filter(|(_, host_id)| !hosts.contains(*host_id)).map(|(id, _)| id).collect()
    }

    fn changed(&mut self, id: CapsuleId, state: State, reason: String, now: OffsetDateTime) -> Effect {
        let Some(entry) = self.entries.get_mut(&id) else { return Effect::Nothing };
        let record = &mut entry.record;
        let event = state::event(record.state, state);
        record.state = state;
        record.reason = reason;
        record.times.updated = now;
        if state == State::Running {
            record.paused_by = PausedBy::Host;
        }
        let record = Box::new(record.clone());
        if state.is_over() {
            self.remember(id);
        }
        Effect::Write(record, event)
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

/// Takes what the host measured. True when the row should follow.
fn measure(
    entry: &mut Entry,
    figures: Figures,
    cpu_us: &mut HashMap<TeamId, u64>,
    now: OffsetDateTime,
) -> bool {
    if figures == Figures::default() {
        return false;
    }
    if let Some(before) = entry.cpu_us {
        // A counter that went back is another agent's: it counts from there.
        let used = figures.cpu_us.saturating_sub(before);
        *cpu_us.entry(entry.record.team).or_default() += used;
    }
    entry.cpu_us = Some(figures.cpu_us);
    let disk = if figures.disk.size_mb == 0 { entry.record.disk } else { figures.disk };
    let active = OffsetDateTime::from_unix_timestamp_nanos(i128::from(figures.last_active_ms) * 1_000_000)
        .ok()
        .max(entry.record.times.last_active);
    let changed = disk != entry.record.disk || active != entry.record.times.last_active;
    entry.record.disk = disk;
    entry.record.times.last_active = active;
    let due = changed && now - entry.active_written >= ACTIVE_EVERY;
    if due {
        entry.active_written = now;
    }
    due
}

#[cfg(test)]
mod tests;
