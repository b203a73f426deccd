//! Capsules of one template share nothing that must differ, and their clocks are right.

use crate::folder;
use hearth_e2e::service::TestService;
use serde_json::json;
use std::{
    collections::HashSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const DRAW: &str = "import json, os, random, secrets, socket, ssl, tempfile, uuid\nimport numpy\n\
    print(json.dumps([str(random.random()), str(uuid.uuid4()), os.urandom(16).hex(), str(numpy.random.rand()), \
    secrets.token_hex(8), str(numpy.random.default_rng().random()), str(uuid.uuid1()), socket.gethostname(), \
    open('/etc/machine-id').read().strip(), open('/proc/sys/kernel/random/boot_id').read().strip(), \
    os.path.basename(tempfile.mktemp()), ssl.RAND_bytes(8).hex()]))";

#[tokio::test(flavor = "multi_thread")]
async fn no_two_capsules_draw_the_same_numbers() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "2")]).await.unwrap();
    service.pool("a full pool", |pool| pool.parked == 2).await.unwrap();
    let mut seen = HashSet::new();
    let mut sources = HashSet::new();
    for round in 0..6 {
        if round == 4 {
            // The last ones are restored on demand, by the other path.
            service.set_pool(0).await.unwrap();
        }
        let answer = service.execute(DRAW).await.unwrap();
        sources.insert(answer.text("/timings/source").to_owned());
        let drawn: Vec<String> = serde_json::from_str(answer.text("/stdout").trim()).expect("a list");
        assert_eq!(drawn.len(), 12);
        for value in drawn {
            assert!(seen.insert(value.clone()), "{value} was drawn by two capsules");
        }
    }
    assert_eq!(sources.len(), 2, "both ways to a capsule were meant to be tried: {sources:?}");
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_is_right_also_after_a_minute_in_the_pool() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    service.pool("a full pool", |pool| pool.parked == 1).await.unwrap();
    // The wait is what is tested: the parked capsule stands still meanwhile.
    tokio::time::sleep(Duration::from_secs(61)).await;
    let id = service.create().await.unwrap();
    let pool = service.pool("the claim to be counted", |pool| pool.hits == 1).await.unwrap();
    assert_eq!(pool.misses, 0, "the capsule did not wait in the pool");
    // The first run translates; its answer would be late, not wrong.
    let body = json!({ "code": "import time\nprint(time.time())" });
    let mut least = f64::MAX;
    for _ in 0..5 {
        let before = now();
        let answer = service.post(&format!("/v1/capsules/{id}/execute"), &body).await.unwrap();
        let after = now();
        let guest: f64 = answer.text("/stdout").trim().parse().unwrap();
        // The guest read its clock some time between the two readings of ours.
        let off = if guest < before { before - guest } else { (guest - after).max(0.0) };
        least = least.min(off);
    }
    assert!(least <= 0.05, "the guest's clock is off by {least} s");
    service.delete(&format!("/v1/capsules/{id}")).await.unwrap();
    service.stop_clean().unwrap();
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

const LOOK: &str = "import sys\nprint(sorted(k for k in globals() if not k.startswith('__')), len(In), len(Out), _, \
    repr(__), _i, _ii, get_ipython().execution_count, 'last_traceback' in dir(sys))";

#[tokio::test(flavor = "multi_thread")]
async fn the_rehearsal_leaves_no_trace() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    service.pool("a full pool", |pool| pool.parked == 1).await.unwrap();
    let rehearsed = service.execute(LOOK).await.unwrap();
    assert_eq!(rehearsed.text("/timings/source"), "warm", "{rehearsed:?}");
    service.set_pool(0).await.unwrap();
    service.pool("an empty pool", |pool| pool.parked == 0 && pool.refilling == 0).await.unwrap();
    let restored = service.execute(LOOK).await.unwrap();
    assert_eq!(restored.text("/timings/source"), "restored", "{restored:?}");
    assert_eq!(rehearsed.text("/stdout"), restored.text("/stdout"));
    assert_eq!(rehearsed.body.pointer("/execution_count"), Some(&json!(1)));
    service.stop_clean().unwrap();
}
