//! How long the steps of a run took, as histograms.

use super::run::Source;
use std::time::Duration;

const SECONDS: &str = "hearth_gateway_execute_stage_seconds";

/// Describes the metric in `/metrics`.
pub(crate) fn describe() {
    metrics::describe_histogram!(
        SECONDS,
        "Steps of a run: getting a capsule, running the code, both together"
    );
}

/// From asking pool-manager until it named a capsule.
pub(crate) fn take(source: Source, took: Duration) {
    record("take", source, took);
}

/// From the call to the agent until the run's end: a parked capsule is resumed in it.
pub(crate) fn run(source: Source, took: Duration) {
    record("run", source, took);
}

/// All of it, tries that failed included.
pub(crate) fn total(source: Source, took: Duration) {
    record("total", source, took);
}

fn record(stage: &'static str, source: Source, took: Duration) {
    metrics::histogram!(SECONDS, "stage" => stage, "source" => source.as_str()).record(took);
}
