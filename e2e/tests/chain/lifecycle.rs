//! Capsules that live: create, run, exec, delete.

use crate::folder;
use hearth_e2e::service::TestService;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_keeps_its_state_until_it_is_deleted() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    let id = service.create().await.unwrap();
    let path = format!("/v1/capsules/{id}");
    let run = |code: &'static str| {
        let (service, path) = (&service, format!("{path}/execute"));
        async move { service.post(&path, &json!({ "code": code })).await.unwrap() }
    };
    run("x = 20").await;
    let answer = run("print(x + 1)").await;
    assert_eq!(answer.text("/stdout"), "21\n", "{answer:?}");
    assert_eq!(answer.body.pointer("/execution_count"), Some(&json!(2)));
    assert_eq!(answer.text("/capsule/state"), "reused");

    let exec = service
        .post(&format!("{path}/exec"), &json!({ "cmd": "/bin/sh", "args": ["-c", "id -un; pwd; exit 3"] }))
        .await
        .unwrap();
    assert_eq!(exec.text("/stdout"), "root\n/root\n", "{exec:?}");
    assert_eq!(exec.body.pointer("/exit_code"), Some(&json!(3)));
    let request = json!({
        "cmd": "/bin/sh", "args": ["-c", "echo $GREETING; pwd"], "envs": { "GREETING": "hi" }, "cwd": "/tmp",
    });
    let exec = service.post(&format!("{path}/exec"), &request).await.unwrap();
    assert_eq!(exec.text("/stdout"), "hi\n/tmp\n", "{exec:?}");

    let got = service.get(&path).await.unwrap();
    assert_eq!((got.status, got.text("/status")), (200, "running"), "{got:?}");
    let listed = service.get("/v1/capsules").await.unwrap();
    assert_eq!(listed.body.as_array().map(Vec::len), Some(1), "{listed:?}");

    assert_eq!(service.delete(&path).await.unwrap().status, 204);
    assert_eq!(service.delete(&path).await.unwrap().status, 204, "deleting again is no error");
    assert_eq!(service.get(&path).await.unwrap().text("/status"), "stopped");
    let gone = service.post(&format!("{path}/execute"), &json!({ "code": "1" })).await.unwrap();
    assert_eq!((gone.status, gone.text("/error/code")), (409, "invalid_state"), "{gone:?}");
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_loses_no_output_and_is_killed_with_its_children_in_time() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    let id = service.create().await.unwrap();
    let path = format!("/v1/capsules/{id}/exec");
    for _ in 0..30 {
        let exec = service.post(&path, &json!({ "cmd": "echo", "args": ["x"] })).await.unwrap();
        assert_eq!(exec.text("/stdout"), "x\n", "{exec:?}");
    }
    let request =
        json!({ "cmd": "/bin/sh", "args": ["-c", "setsid sleep 977 & sleep 977"], "timeout_sec": 1 });
    let late = service.post(&path, &request).await.unwrap();
    assert_eq!((late.status, late.text("/error/code")), (502, "agent_error"), "{late:?}");
    let left = json!({ "cmd": "/bin/sh", "args": ["-c", "pgrep -fc '[s]leep 977' || true"] });
    let left = service.post(&path, &left).await.unwrap();
    assert_eq!(left.text("/stdout").trim(), "0", "{left:?}");
    service.stop_clean().unwrap();
}
