//! API keys: their form, and a bounded cache of look-ups so that the database is not on the way of a request.

use super::{Caller, unauthorized};
use crate::{app::App, error::ApiError, store::Store};
use hearth_proto::id::KeyId;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

const PREFIX: &str = "wrn_";
/// Hex digits after the prefix: 128 random bits.
const DIGITS: usize = 32;
/// What people see of a key: prefix and the first six digits.
const DISPLAY_CHARS: usize = 10;

/// A key that was found is believed for so long; a revoked one works at most this much longer.
const FOUND_FOR: Duration = Duration::from_secs(30);
/// While the database does not answer, a key that was found is believed for so long.
const STALE_FOR: Duration = Duration::from_secs(600);
/// An unknown key is not looked up again for so long.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// Most keys remembered, of each kind. One takes about 100 bytes.
const REMEMBERED_MAX: usize = 10_000;
/// How often the last uses are written.
const FLUSH_EVERY: Duration = Duration::from_secs(10);

type Hash = [u8; 32];

/// A key's secret text. It does not show itself.
pub(crate) struct Secret(String);

impl Secret {
    /// A new random key.
    pub(crate) fn new() -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; DIGITS / 2];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("{PREFIX}{}", hex::encode(bytes))))
    }

    /// Checks the form only.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(PREFIX)?;
        let well_formed =
            digits.len() == DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then(|| Self(text.to_owned()))
    }

    /// The whole key.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// The part that is shown in lists.
    pub(crate) fn display_prefix(&self) -> &str {
        &self.0[..DISPLAY_CHARS]
    }

    fn hash(&self) -> Hash {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// What is stored: SHA-256 in lower-case hex.
    pub(crate) fn hash_hex(&self) -> String {
        hex::encode(self.hash())
    }
}

/// Looked-up keys, and the uses that are not written yet.
#[derive(Default)]
pub(crate) struct Keys {
    memory: Mutex<Memory>,
    used: Mutex<HashMap<KeyId, OffsetDateTime>>,
}

impl Keys {
    /// The caller that a key belongs to. Looks into the database at most every [`FOUND_FOR`] for one key.
    pub(crate) async fn caller(&self, store: &Store, text: &str) -> Result<Caller, ApiError> {
        let unknown = || unauthorized("the API key is not valid");
        let hash = Secret::parse(text).ok_or_else(unknown)?.hash();
        let remembered = lock(&self.memory).recall(&hash, Instant::now());
        let caller = match remembered {
            Recall::Found(caller) => caller,
            Recall::Unknown => return Err(unknown()),
            Recall::Nothing { stale } => match store.key_by_hash(&hex::encode(hash)).await {
                Ok(Some(caller)) => {
                    lock(&self.memory).found(hash, caller, Instant::now());
                    caller
                }
                Ok(None) => {
                    lock(&self.memory).unknown(hash, Instant::now());
                    return Err(unknown());
                }
                Err(error) => match stale {
                    Some(caller) => {
                        tracing::warn!(%error, "the database does not answer; a remembered API key is believed");
                        caller
                    }
                    None => return Err(ApiError::internal(error)),
                },
            },
        };
        let now = OffsetDateTime::now_utc();
        if caller.expires_at.is_some_and(|end| end <= now) {
            return Err(unauthorized("the API key has expired"));
        }
        lock(&self.used).insert(caller.key, now);
        Ok(caller)
    }

    /// Forgets what is remembered, so that a key that was just revoked ends here at once.
    pub(crate) fn forget(&self) {
        *lock(&self.memory) = Memory::default();
    }

    async fn flush(&self, store: &Store) {
        let used: Vec<_> = lock(&self.used).drain().collect();
        if used.is_empty() {
            return;
        }
        if let Err(error) = store.touch_keys(&used).await {
            tracing::warn!(%error, keys = used.len(), "the last uses of API keys were not written");
        }
    }
}

/// Writes the last uses of keys in batches, and once more at shutdown.
pub(crate) async fn flush_uses(app: App, stop: CancellationToken) {
    loop {
        tokio::select! {
            // Stop first: the last batch is written below.
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(FLUSH_EVERY) => {
                app.keys.flush(&app.store).await;
                app.limits.tidy();
            }
        }
    }
    app.keys.flush(&app.store).await;
}

/// The cache itself: no clock of its own.
#[derive(Default)]
struct Memory {
    found: HashMap<Hash, (Caller, Instant)>,
    unknown: HashMap<Hash, Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Recall {
    Found(Caller),
    Unknown,
    /// The database must be asked; `stale` is for when it does not answer.
    Nothing {
        stale: Option<Caller>,
    },
}

impl Memory {
    fn recall(&self, hash: &Hash, now: Instant) -> Recall {
        match self.found.get(hash) {
            Some((caller, at)) if now.duration_since(*at) < FOUND_FOR => Recall::Found(*caller),
            Some((caller, at)) => {
                Recall::Nothing { stale: (now.duration_since(*at) < STALE_FOR).then_some(*caller) }
            }
            None => match self.unknown.get(hash) {
                Some(at) if now.duration_since(*at) < UNKNOWN_FOR => Recall::Unknown,
                _ => Recall::Nothing { stale: None },
            },
        }
    }

    fn found(&mut self, hash: Hash, caller: Caller, now: Instant) {
        if self.found.len() >= REMEMBERED_MAX {
            self.found.retain(|_, (_, at)| now.duration_since(*at) < FOUND_FOR);
            if self.found.len() >= REMEMBERED_MAX {
                self.found.clear();
            }
        }
        self.unknown.remove(&hash);
        self.found.insert(hash, (caller, now));
    }

    fn unknown(&mut self, hash: Hash, now: Instant) {
        if self.unknown.len() >= REMEMBERED_MAX {
            self.unknown.clear();
        }
        self.found.remove(&hash);
        self.unknown.insert(hash, now);
    }
}

/// The maps are whole after every step, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_has_the_public_form() {
        let secret = Secret::new().expect("random bytes");
        assert_eq!(secret.expose().len(), 36);
        assert_eq!(secret.display_prefix(), &secret.expose()[..10]);
        assert!(Secret::parse(secret.expose()).is_some());
        assert_ne!(secret.expose(), Secret::new().expect("random bytes").expose());
    }

    #[test]
    fn other_forms_are_no_keys() {
        for text in
            ["", "wrn_", "wrn_123", &format!("wrn_{}", "A".repeat(32)), &format!("key_{}", "a".repeat(32))]
        {
            assert!(Secret::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn the_hash_is_sha256_of_the_whole_text() {
        let secret = Secret::parse("wrn_00000000000000000000000000000000").expect("well formed");
        assert_eq!(secret.hash_hex().len(), 64);
        assert_eq!(secret.hash_hex(), hex::encode(Sha256::digest(secret.expose())));
    }

    #[test]
    fn memory_forgets_in_time_and_stays_bounded() {
        let caller = Caller::for_tests();
        let start = Instant::now();
        let mut memory = Memory::default();
        assert_eq!(memory.recall(&[1; 32], start), Recall::Nothing { stale: None });
        memory.found([1; 32], caller, start);
        assert_eq!(memory.recall(&[1; 32], start), Recall::Found(caller));
        assert_eq!(memory.recall(&[1; 32], start + FOUND_FOR), Recall::Nothing { stale: Some(caller) });
        assert_eq!(memory.recall(&[1; 32], start + STALE_FOR), Recall::Nothing { stale: None });
        memory.unknown([1; 32], start);
        assert_eq!(memory.recall(&[1; 32], start), Recall::Unknown);
        for number in 0..2 * REMEMBERED_MAX as u64 {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            memory.found(hash, caller, start);
            memory.unknown(hash, start);
        }
        assert!(memory.found.len() <= REMEMBERED_MAX && memory.unknown.len() <= REMEMBERED_MAX);
    }
}
