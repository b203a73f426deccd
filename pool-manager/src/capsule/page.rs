//! One page of a list of capsules: which ones, in which order, and where the next page goes on. Pure.

use super::{Record, state::State};
use crate::error::Refused;
use hearth_proto::id::CapsuleId;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};
use time::OffsetDateTime;
use uuid::Uuid;

/// Most capsules in one list.
pub(crate) const LIMIT_MAX: usize = 10_000;

/// Which capsules a caller wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Empty: all that are not over.
    pub(crate) states: Vec<Wanted>,
    /// Only capsules with all of these.
    pub(crate) metadata: BTreeMap<String, String>,
    /// At most so many; zero: [`LIMIT_MAX`].
    pub(crate) limit: usize,
    /// The capsule before the first.
    pub(crate) after: Option<Cursor>,
}

/// A state as callers see it: one of the row's, or a change under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wanted {
    At(State),
    Pausing,
    Resuming,
    Snapshotting,
}

/// A place in a list: capsules are ordered by when they were made, then by id, so it stays when others come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cursor {
    created_us: i64,
    id: Uuid,
}

impl Cursor {
    /// The place of a capsule.
    pub(crate) fn of(record: &Record) -> Self {
        let created_us =
            i64::try_from(record.times.created.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX);
        Self { created_us, id: record.id.uuid() }
    }

    /// For a caller.
    pub(crate) fn text(self) -> String {
        format!("{:x}-{}", self.created_us, self.id.simple())
    }

    /// From a caller; empty: none.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, Refused> {
        if text.is_empty() {
            return Ok(None);
        }
        text.split_once('-')
            .and_then(|(created, id)| {
                Some(Self {
                    created_us: i64::from_str_radix(created, 16).ok()?,
                    id: Uuid::try_parse(id).ok()?,
                })
            })
            .map(Some)
            .ok_or_else(|| Refused::Invalid("cursor: not one of an earlier answer".to_owned()))
    }

    /// The instant it stands for.
    pub(crate) fn created(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.created_us) * 1000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// The capsule it stands for.
    pub(crate) fn id(self) -> CapsuleId {
        CapsuleId::from_uuid(self.id)
    }
}

impl Filter {
    /// How many at most.
    pub(crate) fn limit(&self) -> usize {
        if self.limit == 0 { LIMIT_MAX } else { self.limit.min(LIMIT_MAX) }
    }

    /// The states of capsules that are over, among those asked for.
    pub(crate) fn over(&self) -> Vec<State> {
        let over = |state: &State| state.is_over() && self.states.contains(&Wanted::At(*state));
        State::ALL.into_iter().filter(over).collect()
    }

    fn takes(&self, record: &Record) -> bool {
        let state = record.shown();
        let of_state =
            if self.states.is_empty() { !record.state.is_over() } else { self.states.contains(&state) };
        let labelled = |(key, value): (&String, &String)| record.labels.metadata.get(key) == Some(value);
        of_state
            && self.metadata.iter().all(labelled)
            && self.after.is_none_or(|after| Cursor::of(record) < after)
    }
}

/// The page, the newest first, and the cursor of the next one when there is more. `live` outranks `rows`.
pub(crate) fn page(filter: &Filter, live: Vec<Record>, rows: Vec<Record>) -> (Vec<Record>, Option<Cursor>) {
    let known: HashSet<CapsuleId> = live.iter().map(|record| record.id).collect();
    let rows = rows.into_iter().filter(|row| !known.contains(&row.id));
    let mut all: Vec<Record> = live.into_iter().chain(rows).filter(|record| filter.takes(record)).collect();
    all.sort_by_key(|record| Reverse(Cursor::of(record)));
    let more = all.len() > filter.limit();
    all.truncate(filter.limit());
    let next = all.last().filter(|_| more).map(Cursor::of);
    (all, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capsule::{Labels, Times, operation::Kind};
    use hearth_proto::id::TeamId;
    use proptest::prelude::*;
    use time::Duration;

    fn record(number: u8, created: i64, state: State) -> Record {
        let at = OffsetDateTime::UNIX_EPOCH + Duration::microseconds(created);
        let even = number.is_multiple_of(2).to_string();
        let plain = Record::plain(TeamId::from_uuid(Uuid::nil()));
        Record {
            id: CapsuleId::from_uuid(Uuid::from_u128(u128::from(number))),
            state,
            labels: Labels { metadata: [("even".to_owned(), even)].into(), ..Labels::default() },
            times: Times { created: at, ..plain.times },
            ..plain
        }
    }

    prop_compose! {
        fn records()(
            all in prop::collection::btree_map(
                any::<u8>(),
                (0i64..5, prop::sample::select(State::ALL.to_vec())),
                0..40,
            ),
        ) -> Vec<Record> {
            all.into_iter().map(|(number, (created, state))| record(number, created, state)).collect()
        }
    }

    proptest! {
        #[test]
        fn pages_together_are_the_whole_list_once_and_in_order(
            all in records(),
            limit in 1usize..7,
            in_rows in any::<u64>(),
        ) {
            let (rows, live): (Vec<_>, Vec<_>) =
                all.iter().cloned().enumerate().partition(|(index, _)| in_rows >> (index % 64) & 1 == 1);
            let (rows, live): (Vec<_>, Vec<_>) =
                (rows.into_iter().map(|(_, record)| record).collect(), live.into_iter().map(|(_, record)| record).collect());
            let mut filter = Filter { limit, ..Filter::default() };
            let mut listed = Vec::new();
            loop {
                let (page, next) = page(&filter, live.clone(), rows.clone());
                prop_assert!(page.len() <= limit);
                listed.extend(page);
                let Some(next) = next else { break };
                filter.after = Cursor::parse(&next.text()).unwrap();
            }
            let mut expected: Vec<_> = all.into_iter().filter(|record| !record.state.is_over()).collect();
            expected.sort_by_key(|record| Reverse((record.times.created, record.id)));
            prop_assert_eq!(listed, expected);
        }

        #[test]
        fn any_cursor_is_read_or_refused(text in ".{0,60}") {
            let _either = Cursor::parse(&text);
        }
    }

    #[test]
    fn states_and_metadata_choose() {
        let all =
            vec![record(1, 1, State::Running), record(2, 2, State::Stopped), record(3, 3, State::Paused)];
        let ids = |filter: &Filter| {
            let (page, _) = page(filter, all.clone(), Vec::new());
            page.iter().map(|record| record.id.uuid().as_u128()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&Filter::default()), [3, 1]);
        let stopped = Filter { states: vec![Wanted::At(State::Stopped)], ..Filter::default() };
        assert_eq!(stopped.over(), [State::Stopped]);
        assert_eq!(ids(&stopped), [2]);
        let even = [("even".to_owned(), "true".to_owned())];
        assert!(ids(&Filter { metadata: even.into(), ..Filter::default() }).is_empty());
    }

    #[test]
    fn a_change_under_way_is_a_state_of_its_own() {
        let pausing = Record { under_way: Some(Kind::Pause), ..record(1, 1, State::Running) };
        for (wanted, found) in [(Wanted::Pausing, 1), (Wanted::At(State::Running), 0)] {
            let filter = Filter { states: vec![wanted], ..Filter::default() };
            assert_eq!(page(&filter, vec![pausing.clone()], Vec::new()).0.len(), found);
        }
    }
}
