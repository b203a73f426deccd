//! The agent's gRPC server.

mod flatten;
mod ports;
pub mod relay;
pub mod service;
mod snapshots;
pub mod status;
pub mod usage;
