//! Code that misbehaves: the right status, and the host and the next request are untouched.

use crate::folder;
use hearth_e2e::service::TestService;
use serde_json::json;

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
    assert!(flood.text("/stdout").len() < 3 << 20, "{} bytes of output", flood.text("/stdout").len());
    assert_eq!(flood.body.pointer("/truncated/stdout"), Some(&json!(true)));
    let eaten = run("x = []\nwhile True: x.append(bytearray(16 << 20))", 60_000).await;
    let status = eaten.text("/status");
    assert!(
        status == "oom" || (status == "error" && eaten.text("/error/name") == "MemoryError"),
        "{eaten:?}"
    );
    let forks = run("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", 4_000).await;
    assert!(["timeout", "kernel_died", "oom", "error"].contains(&forks.text("/status")), "{forks:?}");
    let after = service.execute("print('still here')").await.unwrap();
    assert_eq!(after.text("/stdout"), "still here\n");
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
    // The service itself listens on the host's loopback and would answer.
    let code = format!(
        "import socket\ndef reach(host, port):\n    try:\n        socket.create_connection((host, port), 2).close()\n\
         \x20       return True\n    except OSError:\n        return False\n\
         print([reach(h, {port}) for h in ('10.203.0.1', '127.0.0.1', '1.1.1.1', '169.254.169.254')])"
    );
    let answer = service.execute(&code).await.unwrap();
    assert_eq!(answer.text("/stdout"), "[False, False, False, False]\n", "{answer:?}");
    service.stop_clean().unwrap();
}
