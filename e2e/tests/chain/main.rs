//! The whole chain on real capsules: HTTP → gateway → pool-manager → agent → envd → kernel.
//!
//! Run with `--test-threads=1`: every test starts a service of its own, and the machine is small.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access;
mod bad_input;
mod death;
mod execute;
mod files;
mod hostile;
mod lifecycle;
mod pool_lifecycle;
mod ports;
mod sdk;
mod uniqueness;

/// A data folder with a short path (socket paths are short), removed at the end.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("hearth-").tempdir_in("/tmp").unwrap()
}
