//! pool-manager as a service: real Postgres, the real server on its Unix socket, and an agent that follows a script.
//!
//! The scripted agent is the one thing that is not real: it stands for a host with QEMU. The whole chain on real
//! capsules is the `e2e` crate's subject.

#![expect(clippy::unwrap_used, reason = "in a test, an error that is not expected ends the test")]

mod agent;
mod away;
mod bad_input;
mod capsules;
mod create;
mod database;
mod hosts;
mod lifecycle;
mod locate;
mod pool;
mod queries;
mod restart;
mod snapshots;
mod testbed;
mod usage;
mod watch;
