//! kill -9 of each part: a clean answer or error for the caller, the next request works, nothing is left.

use crate::folder;
use hearth_e2e::{leftovers, process::until, service::TestService};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use std::{fs, path::Path, time::Duration};

/// The processes of the capsule `id`: VMM, pager (from the agent's ledger).
fn processes(dir: &Path, id: &str) -> Vec<i32> {
    let vmms = fs::read_dir(dir.join("agent/vmms")).unwrap();
    vmms.flatten()
        .filter_map(|entry| fs::read(entry.path().join("record.json")).ok())
        .filter_map(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .find(|record| record.get("capsule").and_then(|capsule| capsule.as_str()) == Some(id))
        .and_then(|record| record.get("processes").cloned())
        .and_then(|processes| processes.as_array().cloned())
        .unwrap_or_default()
        .iter()
        .filter_map(|process| process.get("pid").and_then(|pid| pid.as_i64()))
        .map(|pid| pid as i32)
        .collect()
}

/// Whether a process runs. An orphan that has ended stays in the table until init asks for it.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')').is_some_and(|name| !stat[name + 1..].trim_start().starts_with('Z'))
}

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
async fn after_kill_nine_of_everything_the_next_start_sweeps_and_serves() {
    let dir = folder();
    let mut service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "2")]).await.unwrap();
    service.pool("a full pool", |pool| pool.parked == 2).await.unwrap();
    let id = service.create().await.unwrap();
    let orphans = processes(dir.path(), &id);
    assert_eq!(orphans.len(), 2);
    // Under load: a run is under way when it dies.
    let body = json!({ "code": "open('/tmp/started', 'w').close()\nimport time\ntime.sleep(60)" });
    let path = format!("/v1/capsules/{id}/execute");
    let run = service.post(&path, &body);
    tokio::select! {
        answer = run => panic!("the run should still be under way: {answer:?}"),
        seen = service.sees(&id, "/tmp/started") => seen.unwrap(),
    }
    service.process.kill().unwrap();
    assert!(is_alive(orphans[0]), "capsules outlive the agent");
    drop(service);

    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    for pid in orphans {
        assert!(!is_alive(pid), "process {pid} was not swept");
    }
    assert_eq!(service.execute("print('again')").await.unwrap().text("/stdout"), "again\n");
    let got = service.get(&format!("/v1/capsules/{id}")).await.unwrap();
    assert_eq!(got.text("/status"), "missing", "{got:?}");
    service.stop_clean().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
