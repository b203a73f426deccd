//! Requests that are answered once: those with the same key take turns, and the later ones find the first one's rows.

use crate::error::Refused;
use hearth_proto::id::TeamId;
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Requests with a key that are under way at once.
const UNDER_WAY_MAX: usize = 1024;
/// Longest key.
const KEY_MAX: usize = 255;

/// A client's key for a request, and what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) team: TeamId,
    pub(crate) text: String,
    /// SHA-256 of the request.
    pub(crate) digest: [u8; 32],
}

impl Key {
    /// None without a text. `parts` are all that makes the request another one, in a fixed order.
    pub(crate) fn new<'a>(
        team: TeamId,
        text: String,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Option<Self>, Refused> {
        if text.chars().count() > KEY_MAX {
            return Err(Refused::Invalid(format!("idempotency_key: at most {KEY_MAX} characters")));
        }
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Ok((!text.is_empty()).then(|| Self { team, text, digest: digest.finalize().into() }))
    }

    /// Refused unless an earlier request with this key asked for the same.
    pub(crate) fn same(&self, digest: &[u8]) -> Result<(), Refused> {
        if self.digest == *digest {
            return Ok(());
        }
        Err(Refused::Exists("idempotency_key: it was used with another request".to_owned()))
    }
}

type Turns = HashMap<(TeamId, String), ([u8; 32], watch::Receiver<()>)>;

/// Gives turns. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Once {
    turns: Arc<Mutex<Turns>>,
}

/// The only request with its key that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    once: Once,
    key: (TeamId, String),
    _over: watch::Sender<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.once.turns().remove(&self.key);
    }
}

impl Once {
    fn turns(&self) -> MutexGuard<'_, Turns> {
        // The map is whole between any two of its operations, so a panic elsewhere does not spoil it.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other request with this key is under way. Each has deadlines of its own. Cancel safe.
    pub(crate) async fn turn(&self, key: &Key) -> Result<Turn, Refused> {
        loop {
            let mut other = match self.enter(key)? {
                Ok(turn) => return Ok(turn),
                Err(other) => other,
            };
            // It never changes: an error says that its turn is over.
            let _over = other.changed().await;
        }
    }

    fn enter(&self, key: &Key) -> Result<Result<Turn, watch::Receiver<()>>, Refused> {
        let mut turns = self.turns();
        let full = turns.len() >= UNDER_WAY_MAX;
        match turns.entry((key.team, key.text.clone())) {
            Entry::Occupied(other) => {
                let (digest, over) = other.get();
                key.same(digest)?;
                Ok(Err(over.clone()))
            }
            Entry::Vacant(_) if full => {
                Err(Refused::NoCapacity(format!("{UNDER_WAY_MAX} requests with a key are under way")))
            }
            Entry::Vacant(free) => {
                let (sender, over) = watch::channel(());
                let name = free.key().clone();
                free.insert((key.digest, over));
                Ok(Ok(Turn { once: self.clone(), key: name, _over: sender }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(team: TeamId, text: &str, request: &str) -> Key {
        Key::new(team, text.to_owned(), [request.as_bytes()]).unwrap().unwrap()
    }

    #[tokio::test]
    async fn the_same_request_waits_and_another_is_refused() {
        let (once, team) = (Once::default(), TeamId::new());
        let first = once.turn(&key(team, "k", "a")).await.unwrap();
        assert!(matches!(once.turn(&key(team, "k", "b")).await, Err(Refused::Exists(_))));
        assert!(once.turn(&key(TeamId::new(), "k", "b")).await.is_ok());
        let second = tokio::spawn({
            let once = once.clone();
            async move { once.turn(&key(team, "k", "a")).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap().unwrap();
        assert!(once.turns().is_empty());
    }

    #[test]
    fn a_digest_tells_where_parts_end() {
        let team = TeamId::new();
        let digest = |parts: &[&str]| {
            Key::new(team, "k".to_owned(), parts.iter().map(|part| part.as_bytes())).unwrap().unwrap().digest
        };
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_eq!(digest(&["ab", "c"]), digest(&["ab", "c"]));
    }

    #[test]
    fn no_text_is_no_key() {
        assert_eq!(Key::new(TeamId::new(), String::new(), []).unwrap(), None);
        assert!(Key::new(TeamId::new(), "x".repeat(256), []).is_err());
    }
}
