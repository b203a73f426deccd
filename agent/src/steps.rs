//! How long the steps of a capsule's life take: one histogram, by step, engine, and what the capsule came from.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Set once, by the agent's start: a process has one engine.
static ENGINE: OnceLock<&'static str> = OnceLock::new();

/// Names the engine of all steps to come.
pub fn engine(name: &'static str) {
    // An agent that is started again in one process has the same.
    let _ = ENGINE.set(name);
}

/// Records how long a step of a restore took. `source`: what is restored (`template`, `pool` for a template's capsule
/// that waits, `generation`).
pub fn step_from(name: &'static str, source: &'static str, start: Instant) {
    record(name, source, start.elapsed());
}

/// Records how long a step of a running capsule took.
pub fn step(name: &'static str, start: Instant) {
    record(name, "capsule", start.elapsed());
}

/// The same, of a length that is known.
pub fn step_took(name: &'static str, took: Duration) {
    record(name, "capsule", took);
}

fn record(name: &'static str, source: &'static str, took: Duration) {
    let engine = ENGINE.get().copied().unwrap_or("none");
    metrics::histogram!("hearth_agent_step_seconds", "step" => name, "engine" => engine, "source" => source)
        .record(took.as_secs_f64());
}
