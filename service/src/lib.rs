//! What every Hearth service shares: telemetry, metrics, shutdown, gRPC on Unix sockets.

pub mod metrics;
pub mod rpc;
pub mod scrape;
pub mod settings;
pub mod shutdown;
pub mod socket;
pub mod telemetry;
pub mod underway;
