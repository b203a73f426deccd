//! Hearth's agent: one per host, privileged. It drives VMMs, serves guest memory, keeps snapshots, networks and disks,
//! and owns the life of each capsule on its host.
//!
//! Reading order: [`agent`] builds the parts; [`capsule`] is the life of one capsule and the only place that combines
//! [`vmm`], [`memory`], [`snapshot`], [`network`], [`disk`] and [`guest`]; [`template`] makes what capsules start from;
//! [`reaper`] undoes what cannot be undone in a `Drop`; [`grpc`] is the door.

#![deny(unsafe_code)]

pub mod admission;
pub mod adopt;
pub mod agent;
pub mod capsule;
pub mod cgroup;
pub mod config;
pub mod disk;
pub mod engine;
pub mod error;
pub mod grpc;
pub mod guest;
pub mod memory;
pub mod network;
pub mod reaper;
pub mod snapshot;
pub mod steps;
pub mod template;
pub mod usage;
pub mod vmm;
