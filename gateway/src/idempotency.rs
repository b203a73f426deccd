//! Answers kept by idempotency key, in memory and bounded: the same key and body get the first answer, also while it
//! is still being made; the same key with another body is a conflict. Failures are not kept, so that they can be tried
//! again.

use crate::error::ApiError;
use bytes::Bytes;
use hearth_proto::{error::ErrorCode, id::TeamId};
use http::HeaderMap;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

const HEADER: &str = "idempotency-key";
const KEY_CHARS_MAX: usize = 255;
const ENTRIES_MAX: usize = 1024;
const KEPT_FOR: Duration = Duration::from_secs(600);
/// All kept answers together.
const BYTES_MAX: usize = 128 << 20;

/// A team's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    team: TeamId,
    text: String,
}

/// The key in a request's header, for calls whose answers are kept elsewhere; empty when there is none.
pub(crate) fn key_text(headers: &HeaderMap) -> Result<String, ApiError> {
    Ok(text_of(headers)?.unwrap_or_default())
}

impl Key {
    /// The request's key, if it has one.
    pub(crate) fn of(headers: &HeaderMap, team: TeamId) -> Result<Option<Self>, ApiError> {
        Ok(text_of(headers)?.map(|text| Self { team, text }))
    }
}

fn text_of(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::invalid("Idempotency-Key: given more than once"));
    }
    match value.to_str().map(str::trim) {
        Ok(text) if (1..=KEY_CHARS_MAX).contains(&text.len()) => Ok(Some(text.to_owned())),
        Ok(_) | Err(_) => {
            Err(ApiError::invalid(format!("Idempotency-Key: must be 1 to {KEY_CHARS_MAX} ASCII characters")))
        }
    }
}

/// What a request with a key gets: the body of a 200, or an error.
pub(crate) type Outcome = Result<Bytes, ApiError>;

/// What to do for a request with a key.
pub(crate) enum Entry {
    /// It is the first: do the work and report to the slot.
    First(Slot),
    /// Another one does the work.
    Running(Waiter),
    /// The work is done.
    Done(Bytes),
}

/// Kept answers. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Idempotency {
    table: Arc<Mutex<Table>>,
}

impl Idempotency {
    /// Finds out what to do for a key and the fingerprint of the body that came with it.
    pub(crate) fn enter(&self, key: Key, fingerprint: [u8; 32], now: Instant) -> Result<Entry, ApiError> {
        let mut table = self.lock();
        table.expire(now);
        if let Some(known) = table.known.get(&key) {
            if known.fingerprint != fingerprint {
                let message = "Idempotency-Key: the key was used with another body";
                return Err(ApiError::new(ErrorCode::Conflict, message));
            }
            return Ok(match &known.state {
                State::Running(outcome) => Entry::Running(Waiter(outcome.clone())),
                State::Done(answer) => Entry::Done(answer.clone()),
            });
        }
        if !table.make_room() {
            return Err(ApiError::no_capacity("too many requests with idempotency keys; try again"));
        }
        let (report, outcome) = watch::channel(None);
        table.known.insert(key.clone(), Known { fingerprint, state: State::Running(outcome) });
        Ok(Entry::First(Slot { table: self.clone(), key: Some(key), report }))
    }

    /// How many keys are known.
    pub(crate) fn len(&self) -> usize {
        self.lock().known.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right and duty to answer for a key. Dropped without an answer, the key is free again.
pub(crate) struct Slot {
    table: Idempotency,
    key: Option<Key>,
    report: watch::Sender<Option<Outcome>>,
}

impl Slot {
    /// Keeps a success, forgets the key of a failure, and tells all that wait.
    pub(crate) fn finish(mut self, outcome: &Outcome, now: Instant) {
        if let Some(key) = self.key.take() {
            match outcome {
                Ok(answer) => self.table.lock().done(key, answer.clone(), now),
                Err(_) => drop(self.table.lock().known.remove(&key)),
            }
        }
        self.report.send_replace(Some(outcome.clone()));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.table.lock().known.remove(&key);
        }
    }
}

/// Waits for another request's answer.
pub(crate) struct Waiter(watch::Receiver<Option<Outcome>>);

impl Waiter {
    /// The other's answer.
    pub(crate) async fn outcome(mut self) -> Outcome {
        match self.0.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(abandoned())),
            Err(_) => Err(abandoned()),
        }
    }
}

fn abandoned() -> ApiError {
    ApiError::unavailable("the first request with this Idempotency-Key was given up; try again")
}

#[derive(Default)]
struct Table {
    known: HashMap<Key, Known>,
    /// Keys with a kept answer, oldest first, and when they were answered.
    kept: VecDeque<(Key, Instant)>,
    bytes: usize,
}

struct Known {
    fingerprint: [u8; 32],
    state: State,
}

enum State {
    Running(watch::Receiver<Option<Outcome>>),
    Done(Bytes),
}

impl Table {
    fn expire(&mut self, now: Instant) {
        while self.kept.front().is_some_and(|(_, at)| now.duration_since(*at) >= KEPT_FOR) {
            self.forget_oldest();
        }
    }

    /// False when every entry is of a request under way.
    fn make_room(&mut self) -> bool {
        while self.known.len() >= ENTRIES_MAX {
            if !self.forget_oldest() {
                return false;
            }
        }
        true
    }

    fn done(&mut self, key: Key, answer: Bytes, now: Instant) {
        if answer.len() > BYTES_MAX {
            self.known.remove(&key);
            return;
        }
        while self.bytes + answer.len() > BYTES_MAX && self.forget_oldest() {}
        if let Some(known) = self.known.get_mut(&key) {
            self.bytes += answer.len();
            known.state = State::Done(answer);
            self.kept.push_back((key, now));
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((key, _)) = self.kept.pop_front() else { return false };
        if let Some(Known { state: State::Done(answer), .. }) = self.known.remove(&key) {
            self.bytes -= answer.len();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key { team: TeamId::from_uuid(uuid::Uuid::nil()), text: text.to_owned() }
    }

    fn first(keys: &Idempotency, text: &str, now: Instant) -> Slot {
        match keys.enter(key(text), [1; 32], now).expect("entered") {
            Entry::First(slot) => slot,
            Entry::Running(_) | Entry::Done(_) => panic!("{text} is known already"),
        }
    }

    #[tokio::test]
    async fn the_second_gets_the_firsts_answer_during_and_after() {
        let (keys, now) = (Idempotency::default(), Instant::now());
        let slot = first(&keys, "a", now);
        let Ok(Entry::Running(waiter)) = keys.enter(key("a"), [1; 32], now) else { panic!("not running") };
        slot.finish(&Ok(Bytes::from_static(b"answer")), now);
        assert_eq!(waiter.outcome().await.expect("an answer"), "answer");
        let Ok(Entry::Done(answer)) = keys.enter(key("a"), [1; 32], now) else { panic!("not done") };
        assert_eq!(answer, "answer");
        first(&keys, "a", now + KEPT_FOR);
    }

    #[tokio::test]
    async fn another_body_conflicts_and_another_team_does_not() {
        let (keys, now) = (Idempotency::default(), Instant::now());
        let _slot = first(&keys, "a", now);
        let error = keys.enter(key("a"), [2; 32], now).err().expect("refused");
        assert_eq!(error.code(), ErrorCode::Conflict);
        let other = Key { team: TeamId::new(), text: "a".to_owned() };
        assert!(matches!(keys.enter(other, [2; 32], now), Ok(Entry::First(_))));
    }

    #[tokio::test]
    async fn failures_and_abandoned_work_free_the_key() {
        let (keys, now) = (Idempotency::default(), Instant::now());
        let slot = first(&keys, "a", now);
        let Ok(Entry::Running(waiter)) = keys.enter(key("a"), [1; 32], now) else { panic!("not running") };
        slot.finish(&Err(ApiError::no_capacity("full")), now);
        assert_eq!(waiter.outcome().await.expect_err("an error").code(), ErrorCode::NoCapacity);
        let slot = first(&keys, "a", now);
        let Ok(Entry::Running(waiter)) = keys.enter(key("a"), [1; 32], now) else { panic!("not running") };
        drop(slot);
        assert_eq!(waiter.outcome().await.expect_err("an error").code(), ErrorCode::HostUnavailable);
        assert_eq!(keys.len(), 0);
    }

    #[test]
    fn entries_and_bytes_are_bounded() {
        let (keys, now) = (Idempotency::default(), Instant::now());
        for number in 0..2 * ENTRIES_MAX {
            let answer = Bytes::from(vec![0; 1 << 20]);
            first(&keys, &number.to_string(), now).finish(&Ok(answer), now);
        }
        assert!(keys.lock().bytes <= BYTES_MAX);
        assert!(keys.len() <= BYTES_MAX >> 20);
        let running: Vec<Slot> = (0..ENTRIES_MAX).map(|n| first(&keys, &format!("r{n}"), now)).collect();
        assert!(keys.enter(key("one more"), [1; 32], now).is_err());
        drop(running);
        assert_eq!(keys.lock().bytes, 0);
    }
}
