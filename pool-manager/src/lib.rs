//! pool-manager: where capsules live and how many wait warm.
//!
//! ```text
//!            grpc ──▶ pool (take) ──▶ lease            one-shots: in memory only
//!              └────▶ capsule (create, clerk) ──▶ store  users' capsules: a row each
//!   host::watch ──▶ owners ──▶ pool, lease, clerk      what the host says
//! ```
//!
//! Invariant: every capsule that is not a user's has exactly one [`host::held::Held`] value in this process, and
//! dropping that value destroys the capsule. So no path, a cancelled request included, can lose one.
//!
//! Invariant: nothing between `Take` and its answer on a pool hit waits for the database or for an agent.

#![forbid(unsafe_code)]

mod capsule;
mod config;
mod control;
mod error;
mod fleet;
mod grpc;
mod host;
mod lease;
mod metrics;
mod owners;
mod placement;
mod pool;
mod retry;
mod site;
mod snapshot;
mod store;
mod template;
mod usage;

pub use config::{Config, ConfigError};
pub use control::{PoolManager, Running};
pub use error::PoolManagerError;
