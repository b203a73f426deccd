//! Every metric of pool-manager, in one list. No ids of capsules or teams as labels.

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use std::time::Duration;

const TARGET: &str = "hearth_pool_target";
const PARKED: &str = "hearth_pool_parked";
const REFILLING: &str = "hearth_pool_refilling";
const TAKES: &str = "hearth_pool_takes_total";
const TAKE_SECONDS: &str = "hearth_pool_take_seconds";
const REFILL_SECONDS: &str = "hearth_pool_refill_seconds";
const REFILL_FAILURES: &str = "hearth_pool_refill_failures_total";
const RESTORES_WAITING: &str = "hearth_pool_restores_demanded";
const LEASES: &str = "hearth_pool_leases";
const LEASES_EXPIRED: &str = "hearth_pool_leases_expired_total";
const WRITES_PENDING: &str = "hearth_pool_writes_pending";
const AGENT_UP: &str = "hearth_pool_agent_up";
const OPERATION_SECONDS: &str = "hearth_pool_operation_seconds";
const SAMPLES_LOST: &str = "hearth_pool_samples_lost_total";
const WATCHERS_LOST: &str = "hearth_pool_watchers_lost_total";

/// Says what each metric means, for `/metrics`.
pub(crate) fn describe() {
    describe_gauge!(TARGET, "Warm capsules that the pool aims at.");
    describe_gauge!(PARKED, "Warm capsules that can be taken now.");
    describe_gauge!(REFILLING, "Capsules being restored for the pool.");
    describe_counter!(TAKES, "Capsules taken, by whether the pool had one.");
    describe_histogram!(TAKE_SECONDS, "From the request to a capsule, by source.");
    describe_histogram!(REFILL_SECONDS, "One restore for the pool.");
    describe_counter!(REFILL_FAILURES, "Restores for the pool that failed.");
    describe_gauge!(RESTORES_WAITING, "Restores on demand that run or wait.");
    describe_gauge!(LEASES, "One-shot capsules that are in use.");
    describe_counter!(LEASES_EXPIRED, "One-shot capsules destroyed because nobody released them in time.");
    describe_gauge!(WRITES_PENDING, "Changes that wait for the database.");
    describe_gauge!(AGENT_UP, "1 while a host's agent is connected.");
    describe_histogram!(
        OPERATION_SECONDS,
        "A change of a capsule that its user asked for, by kind and result."
    );
    describe_counter!(SAMPLES_LOST, "Samples of teams' use that were never written.");
    describe_counter!(WATCHERS_LOST, "Listeners to capsule events that were too slow.");
}

#[expect(clippy::cast_precision_loss, reason = "counts of capsules are far below 2^52")]
fn number(count: usize) -> f64 {
    count as f64
}

/// The pool's gauges.
pub(crate) fn pool(template: &str, target: usize, parked: usize, refilling: usize) {
    gauge!(TARGET, "template" => template.to_owned()).set(number(target));
    gauge!(PARKED, "template" => template.to_owned()).set(number(parked));
    gauge!(REFILLING, "template" => template.to_owned()).set(number(refilling));
}

/// A request met the pool.
pub(crate) fn take(template: &str, hit: bool) {
    let result = if hit { "hit" } else { "miss" };
    counter!(TAKES, "template" => template.to_owned(), "result" => result).increment(1);
}

/// A capsule was handed out.
pub(crate) fn taken(source: &'static str, after: Duration) {
    histogram!(TAKE_SECONDS, "source" => source).record(after);
}

/// A restore for the pool succeeded.
pub(crate) fn refilled(after: Duration) {
    histogram!(REFILL_SECONDS).record(after);
}

/// A restore for the pool failed.
pub(crate) fn refill_failed(template: &str) {
    counter!(REFILL_FAILURES, "template" => template.to_owned()).increment(1);
}

/// Restores on demand that run or wait.
pub(crate) fn demand(count: usize) {
    gauge!(RESTORES_WAITING).set(number(count));
}

/// One-shots in use.
pub(crate) fn leases(count: usize) {
    gauge!(LEASES).set(number(count));
}

/// A lease ran out.
pub(crate) fn lease_expired() {
    counter!(LEASES_EXPIRED).increment(1);
}

/// Changes that wait for the database.
pub(crate) fn writes_pending(count: usize) {
    gauge!(WRITES_PENDING).set(number(count));
}

/// Whether a host's agent is connected. Hosts are few, so their ids may be labels.
pub(crate) fn agent_up(host_id: &str, up: bool) {
    gauge!(AGENT_UP, "host" => host_id.to_owned()).set(if up { 1.0 } else { 0.0 });
}

/// A change of a capsule is over.
pub(crate) fn operation(kind: &'static str, well: bool, after: Duration) {
    let result = if well { "ok" } else { "refused" };
    histogram!(OPERATION_SECONDS, "kind" => kind, "result" => result).record(after);
}

/// A sample was never written.
pub(crate) fn samples_lost() {
    counter!(SAMPLES_LOST).increment(1);
}

/// A listener was too slow.
pub(crate) fn watcher_lost() {
    counter!(WATCHERS_LOST).increment(1);
}
