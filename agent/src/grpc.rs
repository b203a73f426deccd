//! The agent's gRPC server.

pub mod service;
pub mod status;
