//! What bounds capsules on the host: control groups, the order of ending when memory runs out, admission; and what is
//! counted of them.

use crate::folder;
use hearth_agent::cgroup;
use hearth_e2e::{agent::TestAgent, leftovers, process::until};
use hearth_proto::{
    id::CapsuleId,
    wire::agent::{self as wire, CapsuleState},
};
use std::{fs, path::Path, time::Duration};
use tonic::Code;

const ALONE: (&str, &str) = ("HEARTH_PARKED", "0");

/// Pids of the data folder's processes whose command line has `word`.
fn pids(dir: &Path, word: &str) -> Vec<i32> {
    leftovers::of(dir)
        .iter()
        .filter_map(|left| left.strip_prefix("process ")?.split_once(": "))
        .filter(|(_, command)| command.contains(word))
        .filter_map(|(pid, _)| pid.parse().ok())
        .collect()
}

fn proc_file(pid: i32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_vmm_has_a_control_group_and_ends_before_the_agent_does() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[ALONE]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let score = |pid| proc_file(pid, "oom_score_adj").trim().parse::<i32>().unwrap();
    let mark = hearth_agent::config::Layout::new(dir.path(), dir.path()).mark();
    let id = agent.restore(false).await.unwrap();
    let (vmm, pager) = (pids(dir.path(), " -name ")[0], pids(dir.path(), " pager ")[0]);
    assert_eq!((score(vmm), score(pager)), (500, 400));
    // Lowering its own needs a capability that a container's root may lack.
    let own = score(agent.process.pid());
    let is_warned = agent.process.log().contains("may be ended before its capsules");
    assert!(own == -500 || (is_warned && own < 400), "{own}");
    if agent.process.log().contains("VMMs get no control groups") {
        assert!(hearth_test_skip::lacks("cgroup", "control groups that can be divided"));
        return;
    }
    // Its threads too, and nobody else.
    assert_eq!(cgroup::members(&mark), [vmm]);
    let name = mark.trim_end_matches('-');
    for task in fs::read_dir(format!("/proc/{vmm}/task")).unwrap().flatten() {
        let groups = fs::read_to_string(task.path().join("cgroup")).unwrap_or_default();
        assert!(groups.contains(name), "{groups}");
    }
    let limit = |file: &str| {
        cgroup::left(&mark).iter().find_map(|group| {
            fs::read_to_string(group.join(file))
                .ok()
                .filter(|_| group.to_string_lossy().matches(name).count() > 1)
        })
    };
    let memory = limit("memory.max").or_else(|| limit("memory.limit_in_bytes"));
    if let Some(memory) = memory {
        assert_eq!(memory.trim(), ((1024_u64 + 256) << 20).to_string());
    }
    if let Some(threads) = limit("pids.max") {
        assert_eq!(threads.trim(), "97");
    }
    // A VMM's end takes its group along, an agent's crash leaves it to the next agent.
    let groups = cgroup::left(&mark).len();
    let other = agent.restore(false).await.unwrap();
    assert!(cgroup::left(&mark).len() > groups);
    agent.destroy(other).await.unwrap();
    let gone = || Ok((cgroup::left(&mark).len() == groups).then_some(()));
    until(Duration::from_secs(30), "the group to be removed", gone).unwrap();
    agent.process.kill().unwrap();
    assert_eq!(cgroup::members(&mark), [vmm]);
    let mut agent = TestAgent::start(dir.path(), &[ALONE]).await.unwrap();
    assert_eq!(cgroup::members(&mark), [vmm]);
    agent.destroy(id).await.unwrap();
    // In each hierarchy the agent's own group stays.
    let gone = || Ok((cgroup::left(&mark).len() * 2 == groups).then_some(()));
    until(Duration::from_secs(30), "the group of a VMM that was taken over to be removed", gone).unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

/// Starts an agent with a setting that lets it take `fits` capsules; the next is refused with this.
async fn refused(setting: (&str, &str), fits: usize, words: &str) {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[ALONE, setting]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..fits {
        ids.push(agent.restore(false).await.unwrap());
    }
    let error = agent.restore(false).await.unwrap_err();
    let status = TestAgent::status(&error).unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains(words) && status.message().contains(setting.0), "{status:?}");
    if let Some(first) = ids.first().copied() {
        let error = agent
            .client
            .fork(wire::ForkRequest {
                capsule_id: first.to_string(),
                new_capsule_ids: vec![CapsuleId::new().to_string()],
            })
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
        // What it had is free again.
        agent.pause(first).await.unwrap();
        let last = agent.restore(false).await.unwrap();
        let error = agent.resume(first).await.unwrap_err();
        assert_eq!(TestAgent::status(&error).unwrap().code(), Code::ResourceExhausted, "{error:?}");
        assert_eq!(agent.get(first).await.unwrap().state(), CapsuleState::Paused);
        agent.destroy(last).await.unwrap();
        agent.resume(first).await.unwrap();
        agent.destroy(first).await.unwrap();
    }
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_host_says_what_is_used_up() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    refused(("HEARTH_CPU_OVERCOMMIT", "1"), cpus, "processors: 1 vCPUs are asked, 0 of").await;
    refused(("HEARTH_MEMORY_RESERVE_MB", "900000000"), 0, "memory: 128 MiB are asked, 0 of").await;
    refused(("HEARTH_DISK_RESERVE_MB", "900000000"), 0, "disk: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_capsule_uses_is_counted_over_pauses_and_agents() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[ALONE]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let parked = agent.restore(true).await.unwrap();
    let asleep = agent.get(parked).await.unwrap();
    let id = agent.restore(false).await.unwrap();
    let before = agent.get(id).await.unwrap();
    for (what, value) in [
        ("cpu", before.cpu_us),
        ("private", before.private_bytes),
        ("shared", before.shared_bytes),
        ("disk", before.disk_bytes),
        ("received", before.received_bytes),
        ("sent", before.sent_bytes),
    ] {
        assert!(value > 0, "{what}: {before:?}");
    }
    agent
        .python(id, "block = bytes(range(256)) * (128 << 10)\nn = sum(i * i for i in range(1_000_000))")
        .await
        .unwrap();
    agent.shell(id, "dd if=/dev/urandom of=/root/file bs=1M count=8 status=none; sync").await.unwrap();
    let after = agent.get(id).await.unwrap();
    assert!(after.cpu_us > before.cpu_us, "{after:?} after {before:?}");
    assert!(after.private_bytes > before.private_bytes + (16 << 20), "{after:?} after {before:?}");
    assert!(after.disk_bytes >= before.disk_bytes + (8 << 20), "{after:?} after {before:?}");
    let same = agent.get(parked).await.unwrap();
    assert!(same.cpu_us < asleep.cpu_us + 200_000, "measuring does not wake it: {same:?} after {asleep:?}");
    agent.pause(id).await.unwrap();
    let paused = agent.get(id).await.unwrap();
    assert_eq!((paused.private_bytes, paused.shared_bytes), (0, 0), "{paused:?}");
    assert!(paused.cpu_us >= after.cpu_us && paused.disk_bytes > 8 << 20, "{paused:?}");
    agent.process.stop().unwrap();
    let mut agent = TestAgent::start(dir.path(), &[ALONE]).await.unwrap();
    agent.resume(id).await.unwrap();
    let resumed = agent.get(id).await.unwrap();
    assert!(resumed.cpu_us > paused.cpu_us && resumed.sent_bytes > paused.sent_bytes, "{resumed:?}");
    let points = agent.usage(id).await.unwrap();
    assert!(points.last().unwrap().cpu_us >= paused.cpu_us, "{points:?}");
    assert!(points.is_sorted_by_key(|point| (point.at_ms, point.cpu_us)), "{points:?}");
    let request = wire::GetUsageRequest { capsule_id: id.to_string(), range_sec: 90_000 };
    let error = agent.client.get_usage(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    assert_eq!(fs::read_dir(dir.path().join("agent/usage")).unwrap().count(), 1);
    agent.destroy(id).await.unwrap();
    assert_eq!(fs::read_dir(dir.path().join("agent/usage")).unwrap().count(), 0);
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
