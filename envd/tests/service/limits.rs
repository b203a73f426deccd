//! What ends a process, what does not, and what is left of it.

use crate::capsule::{Capsule, SOON, TOKEN, call, program, run, shell, until};
use hearth_proto::wire::process::{ExecRequest, exec_event::Event};
use std::{fs, path::Path, time::Duration};

/// A tree that a process group alone would not hold: a grandchild in a session of its own, deaf to TERM.
const TREE: &str =
    "trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 100; done' & sleep 100 & echo up; wait";

#[tokio::test]
async fn the_time_limit_kills_the_whole_tree() {
    let (capsule, mut client) = Capsule::active().await;
    let outcome = run(&mut client, ExecRequest { timeout_ms: 1000, ..shell(TREE) }).await.unwrap();
    assert!(outcome.exited.timed_out);
    assert_eq!((outcome.exited.exit_code, outcome.exited.signal, outcome.text()), (137, 9, "up"));
    assert!(capsule.cgroup.wait_empty(SOON).unwrap());
}

#[tokio::test]
async fn a_dropped_stream_kills_the_whole_tree() {
    let (capsule, mut client) = Capsule::active().await;
    let mut events = client.exec(call(shell(TREE), TOKEN)).await.unwrap().into_inner();
    while !matches!(events.message().await.unwrap().unwrap().event, Some(Event::Stdout(_))) {}
    assert!(!capsule.cgroup.wait_empty(Duration::ZERO).unwrap());
    drop(events);
    let cgroup = capsule.cgroup.clone();
    assert!(tokio::task::spawn_blocking(move || cgroup.wait_empty(SOON)).await.unwrap().unwrap());
}

#[tokio::test]
async fn background_processes_live_on_and_may_go_on_writing() {
    let (capsule, mut client) = Capsule::active().await;
    let done = Path::new(&capsule.home()).join("done");
    let script = format!(
        "(for i in 1 2 3 4 5 6; do echo tick; sleep 0.2; done; echo $? > {0}.tmp; mv {0}.tmp {0}) & echo started",
        done.display()
    );
    let request = ExecRequest { timeout_ms: 5000, ..shell(&script) };
    let outcome = run(&mut client, request).await.unwrap();
    assert_eq!((outcome.exited.exit_code, outcome.exited.timed_out), (0, false));
    assert!(
        outcome.text().contains("started") && !done.exists(),
        "the answer does not wait for the background"
    );
    until("the background process ends by itself", || done.exists()).await;
    // The next exec sweeps what the background left.
    assert!(capsule.cgroup.wait_empty(SOON).unwrap());
    run(&mut client, program("true", &[])).await.unwrap();
    let cgroup = capsule.cgroup.clone();
    until("no group is left", || groups(cgroup.path()) == 0).await;
}

#[tokio::test]
async fn a_flood_is_cut_to_head_and_tail() {
    let (capsule, mut client) = Capsule::active().await;
    let script = "printf BEGIN; head -c 200000000 /dev/zero | tr '\\0' x; printf END; yes e 1>&2";
    let request = ExecRequest { max_output_bytes: 100_000, timeout_ms: 4000, ..shell(script) };
    let outcome = run(&mut client, request).await.unwrap();
    assert!(outcome.exited.timed_out && outcome.exited.stderr_truncated);
    assert!(outcome.stderr.len() < 100_100 && outcome.stdout.len() < 100_100);
    assert!(outcome.stdout.starts_with(b"BEGIN"));
    let text = outcome.text();
    assert!(!outcome.exited.stdout_truncated || text.contains(" bytes omitted …\n"));
    assert!(capsule.peak_kib() < 64 << 10, "{} KiB", capsule.peak_kib());
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_no_memory_and_no_extra_time() {
    let (capsule, mut client) = Capsule::active().await;
    let request = ExecRequest { timeout_ms: 1500, max_output_bytes: 64 << 20, ..program("yes", &[]) };
    let mut events = client.exec(call(request, TOKEN)).await.unwrap().into_inner();
    let Some(Event::Started(started)) = events.message().await.unwrap().unwrap().event else { panic!() };
    let process = format!("/proc/{}", started.pid);
    until("the time limit fires without a reader", || !Path::new(&process).exists()).await;
    assert!(capsule.peak_kib() < 64 << 10, "{} KiB", capsule.peak_kib());
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.event;
    }
    assert!(matches!(last, Some(Event::Exited(exited)) if exited.timed_out));
}

fn groups(path: &Path) -> usize {
    fs::read_dir(path)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("exec-"))
        .count()
}
