//! Names of the gRPC metadata that Hearth's parts exchange.

/// The capsule's token, on every call to envd but the first `Activate`. ASCII.
pub const TOKEN: &str = "x-hearth-token";

/// The caller's `CLOCK_REALTIME` in nanoseconds since the epoch, decimal.
pub const REALTIME_NS: &str = "x-hearth-realtime-ns";

/// The capsule that a passed-through call is for, on calls to the agent's `Processes` and `Files`.
pub const CAPSULE: &str = "x-hearth-capsule";

/// Request id, for logs across processes.
pub const REQUEST_ID: &str = "x-request-id";

/// The port envd listens on, at the guest's address.
pub const ENVD_PORT: u16 = 49_983;
