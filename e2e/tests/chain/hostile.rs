//! Code that misbehaves: the right status, and the host and the next request are untouched.

use crate::folder;
use hearth_e2e::{process::until, service::TestService};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn misbehaving_code_gets_the_right_status() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    let run = |code: &'static str, timeout_ms: u64| {
        let service = &service;
        async move {
            let answer = service
                .post("/v1/execute", &json!({ "code": code, "timeout_ms": timeout_ms }))
                .await
                .unwrap();
            assert_eq!(answer.status, 200, "{code}: {answer:?}");
            answer
        }
    };
    let looped = run("while True: pass", 2_000).await;
    assert_eq!(looped.text("/status"), "timeout", "{looped:?}");
    let asleep = run("import time; time.sleep(1e6)", 2_000).await;
    assert_eq!(asleep.text("/status"), "timeout", "{asleep:?}");
    let died = run("import os; os._exit(1)", 20_000).await;
    assert_eq!(died.text("/status"), "kernel_died", "{died:?}");
    let flood = run("while True: print('x' * 1000)", 3_000).await;
    assert_eq!(flood.text("/status"), "timeout", "{:?}", flood.body.pointer("/error"));
    // The default limit, with room for the marker of the cut; head and tail are kept, not nothing.
    let kept = flood.text("/stdout").len();
    assert!(((1 << 20) - 4096..(1 << 20) + 4096).contains(&kept), "{kept} bytes of output");
    assert_eq!(flood.body.pointer("/truncated/stdout"), Some(&json!(true)));
    let eaten = run("x = []\nwhile True: x.append(bytearray(16 << 20))", 60_000).await;
    assert_eq!(eaten.text("/status"), "oom", "{eaten:?}");
    assert_eq!(eaten.text("/error/name"), "OutOfMemoryError", "{eaten:?}");
    let after = service.execute("print('still here')").await.unwrap();
    assert_eq!(after.text("/stdout"), "still here\n");
    service.stop_clean().unwrap();
}

const FORKS: &str = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass";

/// Its code neither ends nor reacts to the interrupt at its time limit: the kernel is killed with all its children, and
/// the run is a timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_is_a_timeout_and_costs_the_host_nothing() {
    let dir = folder();
    // No VMMs that are spawned ahead, at a time of their own: what is counted is capsules.
    let settings = [("HEARTH_POOL_TARGET", "1"), ("HEARTH_PARKED", "0")];
    let service = TestService::start(dir.path(), &settings).await.unwrap();
    let full = || service.pool("a full pool", |pool| pool.parked == 1 && pool.refilling == 0);
    // The first capsule fills the shared image; what is compared comes after it.
    service.execute("1").await.unwrap();
    let id = service.create().await.unwrap();
    let path = format!("/v1/capsules/{id}");
    full().await.unwrap();
    let before = service.footprint();

    let bomb = json!({ "code": FORKS, "timeout_ms": 4_000 });
    for (route, state) in [("/v1/execute".to_owned(), "new"), (format!("{path}/execute"), "reused")] {
        let answer = service.post(&route, &bomb).await.unwrap();
        assert_eq!((answer.status, answer.text("/status")), (200, "timeout"), "{answer:?}");
        assert_eq!(answer.text("/error/name"), "TimeoutError", "{answer:?}");
        assert_eq!(answer.text("/capsule/state"), state, "{answer:?}");
    }
    // The same capsule: its kernel is another one, and none of the bomb's processes is left.
    let next = service.post(&format!("{path}/execute"), &json!({ "code": "print(1)" })).await.unwrap();
    assert_eq!((next.text("/status"), next.text("/stdout")), ("ok", "1\n"), "{next:?}");
    assert_eq!(next.text("/capsule/state"), "new", "lost state is said: {next:?}");
    let kernels = json!({ "cmd": "pgrep", "args": ["-fc", "[k]ernel.py"] });
    let kernels = service.post(&format!("{path}/exec"), &kernels).await.unwrap();
    assert_eq!(kernels.text("/stdout").trim(), "1", "{kernels:?}");
    // Another capsule.
    assert_eq!(service.execute("print('still here')").await.unwrap().text("/stdout"), "still here\n");
    // The host, once the bombed capsules are gone.
    assert_eq!(service.delete(&path).await.unwrap().status, 204);
    service.create().await.unwrap();
    full().await.unwrap();
    until(Duration::from_secs(60), "processes and memory to be back", || {
        let now = service.footprint();
        let back = now.processes <= before.processes && now.private_mb <= before.private_mb + 64;
        Ok(back.then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}, before {before:?}", service.footprint()));
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_is_usable_after_a_timeout_and_honest_after_a_death() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    let id = service.create().await.unwrap();
    let run = |code: &'static str, timeout_ms: u64| {
        let (service, path) = (&service, format!("/v1/capsules/{id}/execute"));
        async move { service.post(&path, &json!({ "code": code, "timeout_ms": timeout_ms })).await.unwrap() }
    };
    run("kept = 5", 20_000).await;
    assert_eq!(run("while True: pass", 1_500).await.text("/status"), "timeout");
    let kept = run("print(kept)", 20_000).await;
    assert_eq!(kept.text("/stdout"), "5\n", "an interrupted context keeps its state: {kept:?}");
    assert_eq!(
        run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 20_000).await.text("/status"),
        "kernel_died"
    );
    let lost = run("'kept' in globals()", 60_000).await;
    assert_eq!(lost.text("/results/0/text~1plain"), "False", "{lost:?}");
    assert_eq!(lost.text("/capsule/state"), "new", "lost state is said: {lost:?}");
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_reaches_no_network_but_its_own_link() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    let port = service.url.rsplit(':').next().unwrap().to_owned();
    assert_eq!(service.get("/health").await.unwrap().status, 200);
    // The service itself listens on the host's loopback and would answer.
    let code = format!(
        "import socket\ndef reach(host, port):\n    try:\n        socket.create_connection((host, port), 2).close()\n\
         \x20       return True\n    except OSError:\n        return False\n\
         own = socket.create_server(('127.0.0.1', 0))\n\
         print(reach('127.0.0.1', own.getsockname()[1]), \
         [reach(h, {port}) for h in ('10.203.0.1', '127.0.0.1', '1.1.1.1', '169.254.169.254')])"
    );
    let answer = service.execute(&code).await.unwrap();
    assert_eq!(answer.text("/stdout"), "True [False, False, False, False]\n", "{answer:?}");
    service.stop_clean().unwrap();
}
