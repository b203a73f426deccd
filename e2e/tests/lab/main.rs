//! The agent with a real Firecracker on a real KVM. Runs inside the KVM lab (`make kvm-lab`), one test at a time.
//!
//! Several threads each: a client that is not polled would keep the agent waiting for it at its stop. Few restores: each
//! takes some ten seconds on this twice emulated machine.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod generations;
mod raw;

use hearth_e2e::{
    agent::{Ran, TestAgent},
    leftovers,
    process::{program, until},
};
use hearth_proto::{
    id::CapsuleId,
    wire::{agent as wire, process as guest},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A guest that hangs is noticed through its pager's death at once; the rest is the nested machine's slowness.
const DEATH_DEADLINE: Duration = Duration::from_secs(20);

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("hearth-").tempdir().unwrap()
}

/// Pids of the processes of the data folder whose command line has `word`.
fn pids(dir: &Path, word: &str) -> Vec<i32> {
    let mark = hearth_agent::config::Layout::new(dir, dir).mark();
    let folder = dir.to_string_lossy().into_owned();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (line.contains(&mark) || line.contains(&folder)) && line.contains(word)
        })
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .collect()
}

fn no_leftovers(dir: &Path) {
    assert_eq!(leftovers::of(dir), Vec::<String>::new());
    assert_eq!(groups(), Vec::<PathBuf>::new());
}

/// Control groups of agents.
fn groups() -> Vec<PathBuf> {
    let groups = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    groups.filter(|path| path.to_string_lossy().contains("hearth")).collect()
}

async fn stop(agent: &mut TestAgent, dir: &Path) {
    agent.process.stop().unwrap();
    let log = agent.process.log();
    assert!(!log.contains(" ERROR "), "an error in the log:\n{log}");
    no_leftovers(dir);
}

async fn answers(agent: &mut TestAgent, id: CapsuleId) -> Ran {
    let ran = agent.run(id, "print(1+1)\n40+2").await.unwrap();
    assert_eq!((ran.stdout.as_str(), ran.value.as_deref()), ("2\n", Some("42")), "{ran:?}");
    ran
}

async fn exec(agent: &mut TestAgent, id: CapsuleId, cmd: &str, args: &[&str]) -> String {
    let request = guest::ExecRequest {
        cmd: cmd.to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..Default::default()
    };
    let call = wire::ExecCall { capsule_id: id.to_string(), request: Some(request) };
    let mut events = agent.client.exec(call).await.unwrap().into_inner();
    let (mut output, mut exited) = (Vec::new(), None);
    while let Some(event) = events.message().await.unwrap() {
        match event.event.unwrap() {
            guest::exec_event::Event::Stdout(bytes) => output.extend(bytes),
            guest::exec_event::Event::Exited(end) => exited = Some(end),
            guest::exec_event::Event::Started(_) | guest::exec_event::Event::Stderr(_) => {}
        }
    }
    assert_eq!(exited.map(|end| end.exit_code), Some(0));
    String::from_utf8(output).unwrap()
}

#[test]
fn the_probe_says_that_kvm_is_real_and_firecracker_is_chosen() {
    let output = Command::new(program().unwrap()).args(["doctor", "--json"]).output().unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let engine = findings.as_array().unwrap().iter().find(|row| row["name"] == "engine").unwrap();
    assert_eq!(engine["grade"], "good", "{engine}");
    let text = engine["text"].as_str().unwrap();
    assert!(text.starts_with("firecracker 1.12.1 with kvm: KVM is real"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_built_and_its_capsules_answer_and_leave_nothing() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[]).await.unwrap();
    let template = agent.ensure_code().await.unwrap();
    assert_eq!(template.languages, ["python"]);
    let host = agent.client.get_host(wire::GetHostRequest {}).await.unwrap().into_inner();
    assert_eq!((host.engine.as_str(), host.accelerator.as_str()), ("firecracker", "kvm"));
    for park in [false, true] {
        let id = agent.restore(park).await.unwrap();
        assert!(exec(&mut agent, id, "uname", &["-r"]).await.contains("cloud"));
        let ran = answers(&mut agent, id).await;
        assert_eq!(ran.end.as_ref().map(|end| end.execution_count), Some(1));
        agent.destroy(id).await.unwrap();
        agent.destroy(id).await.unwrap();
    }
    stop(&mut agent, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn capsules_of_one_snapshot_share_no_memory_no_disk_and_no_chance() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let (one, two) = (agent.restore(false).await.unwrap(), agent.restore(false).await.unwrap());
    let draw = "import os, random\nmine = random.random()\nprint(mine, os.urandom(8).hex())";
    let (first, second) = (agent.run(one, draw).await.unwrap(), agent.run(two, draw).await.unwrap());
    assert_ne!(first.stdout, second.stdout);
    agent.run(one, "block = bytearray(b'Z' * (32 << 20))").await.unwrap();
    exec(&mut agent, one, "sh", &["-c", "echo one >/root/note && sync"]).await;
    let ran = agent.run(two, "'block' in globals()").await.unwrap();
    assert_eq!(ran.value.as_deref(), Some("False"));
    assert_eq!(exec(&mut agent, two, "sh", &["-c", "cat /root/note 2>/dev/null; true"]).await, "");
    // A disk grows under a running capsule.
    let size = ["-c", "df --block-size=M --output=size / | tail -n 1 | tr -dc 0-9"];
    let before: u64 = exec(&mut agent, one, "sh", &size).await.parse().unwrap();
    assert!((1900..=2048).contains(&before), "{before}");
    let request = wire::GrowDiskRequest { capsule_id: one.to_string(), disk_mb: 5000 };
    let grown = agent.client.grow_disk(request).await.unwrap().into_inner();
    assert_eq!(grown.disk_mb, 5000);
    let after: u64 = exec(&mut agent, one, "sh", &size).await.parse().unwrap();
    assert!((4700..=5000).contains(&after), "{after}");
    assert_eq!(exec(&mut agent, one, "cat", &["/root/note"]).await, "one\n");
    let served = agent.get(one).await.unwrap();
    assert!(served.faults > 100, "memory came from the pager: {served:?}");
    stop(&mut agent, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_firecracker_is_a_clean_failure() {
    let dir = folder();
    let mut agent = dies_cleanly(dir.path(), "--api-sock", "the VMM ended").await;
    let next = agent.restore(false).await.unwrap();
    answers(&mut agent, next).await;
    stop(&mut agent, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pager_is_a_clean_failure() {
    // On another filesystem than the images: what the jail shows is bound, not linked.
    let dir = tempfile::Builder::new().prefix("hearth-").tempdir_in("/dev/shm").unwrap();
    let mut agent = dies_cleanly(dir.path(), " pager ", "its pager ended").await;
    stop(&mut agent, dir.path()).await;
}

/// Kills the process whose command line has `word`: the capsule fails, for that reason.
async fn dies_cleanly(dir: &Path, word: &str, reason: &str) -> TestAgent {
    let mut agent = TestAgent::start(dir, &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    answers(&mut agent, id).await;
    let victims = pids(dir, word);
    assert_eq!(victims.len(), 1, "{victims:?}");
    kill(Pid::from_raw(victims[0]), Signal::SIGKILL).unwrap();
    let mut client = agent.client.clone();
    let failed = tokio::time::timeout(DEATH_DEADLINE, async {
        loop {
            let request = wire::GetCapsuleRequest { capsule_id: id.to_string(), usage: false };
            let capsule = client.get_capsule(request).await.unwrap().into_inner();
            if capsule.state() == wire::CapsuleState::Failed {
                return capsule;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(failed.reason.contains(reason), "{failed:?}");
    agent.run(id, "1").await.unwrap_err();
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_agent_leaves_is_taken_over_by_the_next() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    agent.run(id, "kept = 6 * 7").await.unwrap();
    let firecracker = pids(dir.path(), "--api-sock");
    agent.process.kill().unwrap();
    assert_eq!(pids(dir.path(), "--api-sock"), firecracker, "a Firecracker outlives its agent");
    assert!(!groups().is_empty(), "it has a control group");
    drop(agent);
    let mut next = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    assert_eq!(pids(dir.path(), "--api-sock"), firecracker, "the same one");
    let ran = next.run(id, "print(kept)").await.unwrap();
    assert_eq!(ran.stdout, "42\n", "{ran:?}");
    // A death is noticed though it is no child of the agent's.
    kill(Pid::from_raw(firecracker[0]), Signal::SIGKILL).unwrap();
    until(DEATH_DEADLINE, "its folder to go", || {
        Ok(std::fs::read_dir(dir.path().join("agent/vmms"))?.next().is_none().then_some(()))
    })
    .unwrap();
    next.run(id, "1").await.unwrap_err();
    stop(&mut next, dir.path()).await;
}
