//! The agent's gRPC server.

pub mod service;
mod snapshots;
pub mod status;
pub mod usage;
