//! The process's Prometheus registry.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::{Mutex, PoisonError};

/// Buckets of every `_seconds` histogram, chosen for a service whose steps take 0.1 ms to 30 s.
const SECONDS: [f64; 18] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0,
    10.0, 30.0,
];

/// Bounds of the buckets of `hearth_agent_fault_serve_seconds`, in microseconds: mapping a zero page takes some 5 µs, filling
/// a part of an image 100 to 300, and whoever waits for a disk or a busy host milliseconds. Pagers count by these.
pub const FAULT_MICROS: [u64; 13] = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000];

/// Held while the registry is installed: the process can have only one.
static HANDLE: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Installs the registry once per process and returns its handle (`render()` is the text of `/metrics`).
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut installed = HANDLE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let faults = FAULT_MICROS.map(|micros| micros as f64 / 1e6);
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("hearth_agent_fault_serve_seconds".to_owned()), &faults)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()?;
    *installed = Some(handle.clone());
    Ok(handle)
}
