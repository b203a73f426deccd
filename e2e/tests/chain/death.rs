//! kill -9 of each part: a clean answer or error for the caller, the next request works, nothing is left.

use crate::folder;
use hearth_e2e::{
    ledger::{is_alive, processes},
    leftovers,
    process::{program, until},
    service::TestService,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use std::{collections::BTreeSet, fs, time::Duration};

async fn killed_while_running(which: usize) {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    let id = service.create().await.unwrap();
    let path = format!("/v1/capsules/{id}");
    let body = json!({ "code": "open('/tmp/started', 'w').close()\nimport time\ntime.sleep(60)" });
    let pids = processes(dir.path(), &id);
    assert_eq!(pids.len(), 2, "a VMM and its pager");
    let execute = format!("{path}/execute");
    let run = service.post(&execute, &body);
    let end = async {
        service.sees(&id, "/tmp/started").await.unwrap();
        kill(Pid::from_raw(pids[which]), Signal::SIGKILL).unwrap();
    };
    let (answer, ()) = tokio::join!(run, end);
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.text("/error/code")), (502, "agent_error"), "{answer:?}");
    assert_eq!(answer.text("/error/message"), "the capsule was lost while the code ran");
    let gone = until(Duration::from_secs(10), "the death to be known", || {
        Ok(processes(dir.path(), &id).is_empty().then_some(()))
    });
    gone.unwrap();
    for pid in pids {
        assert!(!is_alive(pid), "process {pid} of the lost capsule lives on");
    }
    let got = service.get(&path).await.unwrap();
    assert_eq!(got.text("/status"), "error", "{got:?}");
    assert_eq!(service.execute("print('next')").await.unwrap().text("/stdout"), "next\n");
    assert_eq!(service.delete(&path).await.unwrap().status, 204);
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_vmm_is_a_clean_error() {
    killed_while_running(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pager_is_a_clean_error_and_never_wrong_memory() {
    killed_while_running(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_capsule_that_dies_is_replaced() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    service.pool("a full pool", |pool| pool.parked == 1).await.unwrap();
    let mut agent = service.agent().unwrap();
    let listed =
        agent.list_capsules(hearth_proto::wire::agent::ListCapsulesRequest {}).await.unwrap().into_inner();
    let parked = listed
        .capsules
        .iter()
        .find(|capsule| capsule.state() == hearth_proto::wire::agent::CapsuleState::Parked)
        .unwrap()
        .capsule_id
        .clone();
    kill(Pid::from_raw(processes(dir.path(), &parked)[0]), Signal::SIGKILL).unwrap();
    let answer = service.execute("print(1)").await.unwrap();
    assert_eq!(answer.text("/stdout"), "1\n");
    assert_ne!(answer.text("/capsule/id"), parked);
    service.pool("a full pool again", |pool| pool.parked == 1).await.unwrap();
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_nine_of_everything_capsules_live_on_and_the_pool_is_taken_back() {
    let dir = folder();
    let mut service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "2")]).await.unwrap();
    service.pool("a full pool", |pool| pool.parked == 2).await.unwrap();
    let id = service.create().await.unwrap();
    let path = format!("/v1/capsules/{id}");
    let execute = format!("{path}/execute");
    let answer = service.post(&execute, &json!({ "code": "kept = 6 * 7" })).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    service.pool("a full pool", |pool| pool.parked == 2).await.unwrap();
    let before = parked(&service).await;
    // Under load: a run is under way when it dies.
    let body = json!({ "code": "open('/tmp/started', 'w').close()\nimport time\ntime.sleep(60)" });
    let run = service.post(&execute, &body);
    tokio::select! {
        answer = run => panic!("the run should still be under way: {answer:?}"),
        seen = service.sees(&id, "/tmp/started") => seen.unwrap(),
    }
    let pids = processes(dir.path(), &id);
    service.process.kill().unwrap();
    assert!(pids.len() == 2 && pids.iter().all(|pid| is_alive(*pid)), "capsules outlive the agent");
    drop(service);

    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "2")]).await.unwrap();
    assert_eq!(processes(dir.path(), &id), pids, "the same VMM and pager");
    service.pool("the pool to be taken back", |pool| pool.parked == 2).await.unwrap();
    assert_eq!(parked(&service).await, before, "warm capsules are not restored again");
    let got = service.get(&path).await.unwrap();
    assert_eq!(got.text("/status"), "running", "{got:?}");
    let answer = service.post(&execute, &json!({ "code": "print(kept)" })).await.unwrap();
    assert_eq!(answer.text("/stdout"), "42\n", "{answer:?}");
    assert_eq!(service.execute("print('again')").await.unwrap().text("/stdout"), "again\n");
    assert_eq!(service.delete(&path).await.unwrap().status, 204);
    let gone = || Ok(pids.iter().all(|pid| !is_alive(*pid)).then_some(()));
    until(Duration::from_secs(20), "a destroyed capsule's processes to be gone", gone).unwrap();
    service.stop_clean().unwrap();
}

/// Ids of the capsules that wait in the pool.
async fn parked(service: &TestService) -> BTreeSet<String> {
    use hearth_proto::wire::agent::{CapsuleState, ListCapsulesRequest};
    let mut agent = service.agent().unwrap();
    let listed = agent.list_capsules(ListCapsulesRequest {}).await.unwrap().into_inner();
    let parked = listed.capsules.into_iter().filter(|capsule| capsule.state() == CapsuleState::Parked);
    parked.map(|capsule| capsule.capsule_id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_hearth_leaves_nothing_running_and_brings_capsules_back_when_they_are_used() {
    let dir = folder();
    let pause = [("HEARTH_POOL_TARGET", "1"), ("HEARTH_ON_STOP", "pause")];
    let service = TestService::start(dir.path(), &pause).await.unwrap();
    let mut ids = Vec::new();
    for number in 0..3 {
        let id = service.create().await.unwrap();
        let code = json!({ "code": format!("kept = {number}") });
        let answer = service.post(&format!("/v1/capsules/{id}/execute"), &code).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        ids.push(id);
    }
    service.stop_clean().unwrap();
    let service = TestService::start(dir.path(), &pause).await.unwrap();
    for (number, id) in ids.iter().enumerate() {
        let path = format!("/v1/capsules/{id}");
        let got = service.get(&path).await.unwrap();
        assert_eq!(got.text("/status"), "paused", "{got:?}");
        // A run brings it back, and so does a program.
        if number == 2 {
            service.sees(id, "/etc/passwd").await.unwrap();
        }
        let code = json!({ "code": "print(kept)" });
        let answer = service.post(&format!("{path}/execute"), &code).await.unwrap();
        assert_eq!(answer.text("/stdout"), format!("{number}\n"), "{answer:?}");
    }
    service.stop_clean().unwrap();
    // Told to, it keeps nothing.
    let down = std::process::Command::new(program().unwrap())
        .args(["down", "--destroy"])
        .env("HEARTH_DIR", dir.path())
        .output()
        .unwrap();
    assert!(down.status.success(), "{down:?}");
    assert!(String::from_utf8_lossy(&down.stdout).contains("3 paused"), "{down:?}");
    for folder in ["agent/paused", "agent/snapshots"] {
        assert_eq!(fs::read_dir(dir.path().join(folder)).unwrap().count(), 0, "{folder}");
    }
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
