//! The guest daemon of a capsule, in one static binary with three roles:
//!
//! - the initramfs's `/init` ([`boot`]): disks, overlay root, and a copy of itself into the new root;
//! - PID 1 of the capsule ([`init`]): mounts, network, control groups, reaping, the service kept alive;
//! - the service ([`server`]): gRPC for the agent: activate, prepare, exec, execute, health.

#![deny(unsafe_code)]

pub mod boot;
pub mod cgroup;
pub mod cmdline;
pub mod config;
pub mod disk;
pub mod files;
pub mod gate;
pub mod grpc;
pub mod init;
pub mod port;
pub mod process;
pub mod server;
pub mod service;
pub mod snapshot;
pub mod user;
