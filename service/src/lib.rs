//! What every Hearth service shares: telemetry, metrics, shutdown, Unix sockets.

pub mod metrics;
pub mod shutdown;
pub mod socket;
pub mod telemetry;
