//! The steps after a restore, in an order in which nothing runs with a twin's randomness, time or names.

use super::{Guest, entropy, identity::Identity};
use hearth_runtimes::RuntimeError;
use std::{collections::HashMap, io, time::Instant};

/// What a capsule is given when it comes to life. Checked.
#[derive(Debug)]
pub struct Activation {
    /// Fresh random bytes of the host's.
    pub entropy: Vec<u8>,
    /// The host's time in nanoseconds since the epoch.
    pub realtime_ns: i64,
    /// Its names.
    pub identity: Identity,
    /// Its environment.
    pub env: HashMap<String, String>,
}

/// Which step failed.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The kernel did not take the entropy, or had none to give.
    #[error("the random number generator cannot be reseeded")]
    Entropy(#[source] io::Error),
    /// The time was not set.
    #[error("the clock cannot be set")]
    Clock(#[source] io::Error),
    /// The names were not taken on.
    #[error("the host name and ids cannot be set")]
    Identity(#[source] io::Error),
    /// User processes stay frozen.
    #[error("user processes cannot be thawed")]
    Thaw(#[source] io::Error),
    /// A kernel kept its generators' state.
    #[error("a kernel cannot be reseeded")]
    Reseed(#[source] RuntimeError),
}

/// How long the steps took, in microseconds, in their order.
pub type StepTimes = Vec<(&'static str, u64)>;

/// Takes the steps. After an error the guest is not fit to serve.
pub async fn activate(guest: &Guest, activation: Activation) -> Result<StepTimes, ActivateError> {
    let mut watch = Stopwatch { last: Instant::now(), times: Vec::with_capacity(5) };
    entropy::add(&activation.entropy).map_err(ActivateError::Entropy)?;
    watch.lap("entropy");
    guest.clock.set_ns(activation.realtime_ns).map_err(ActivateError::Clock)?;
    watch.lap("clock");
    let boot_id = uuid::Builder::from_random_bytes(random()?).into_uuid().to_string();
    guest.names.assume(&activation.identity, &boot_id).map_err(ActivateError::Identity)?;
    guest.set_env(activation.env);
    watch.lap("identity");
    guest.users.thaw().map_err(ActivateError::Thaw)?;
    watch.lap("thaw");
    guest.runtimes.reseed().await.map_err(ActivateError::Reseed)?;
    watch.lap("reseed");
    Ok(watch.times)
}

/// Straight from the kernel: a generator of our own would be in the snapshot.
fn random() -> Result<[u8; 16], ActivateError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| ActivateError::Entropy(error.into()))?;
    Ok(bytes)
}

struct Stopwatch {
    last: Instant,
    times: StepTimes,
}

impl Stopwatch {
    fn lap(&mut self, step: &'static str) {
        let now = Instant::now();
        let elapsed = now.duration_since(self.last).as_micros();
        self.times.push((step, u64::try_from(elapsed).unwrap_or(u64::MAX)));
        self.last = now;
    }
}
