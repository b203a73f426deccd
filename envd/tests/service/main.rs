//! The service binary on loopback, with real processes and control groups, in mount and host name namespaces of its
//! own. Needs root and a cgroup v2 mount.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod activation;
mod attached;
mod capsule;
mod exec;
mod files;
mod limits;
mod processes;
mod stored;
mod terminals;
mod watch;
