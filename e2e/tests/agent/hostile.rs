//! Guests that attack the host: their neighbours and the agent go on, and they can be ended at once.

use crate::folder;
use hearth_agent::{network::netns::Netns, vmm::machine::GuestNetwork};
use hearth_e2e::{agent::TestAgent, leftovers};
use hearth_proto::{
    id::CapsuleId,
    wire::{
        agent::{self as wire, CapsuleState},
        process::ExecRequest,
    },
};
use std::{
    net::UdpSocket,
    path::Path,
    time::{Duration, Instant},
};
use tonic::Code;

/// Runs of the good capsule that are compared.
const RUNS: usize = 15;
/// How much slower its median run may be beside an attacker. Two processors, one of them the attacker's, and a machine
/// that does other things meanwhile: an attack that takes the host makes it hundreds of times slower.
const RATIO_MAX: f64 = 10.0;
/// Below this a median is noise.
const FLOOR: Duration = Duration::from_millis(10);
/// Ending a capsule takes some 50 ms. A tenth of what its guest would be waited for.
const AT_ONCE: Duration = Duration::from_secs(12);

/// Where a frozen guest waits for a packet.
const THAW_PORT: u16 = 9;

const ATTACKS: [(&str, &str); 6] = [
    ("a fork bomb", "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"),
    (
        "all its process ids",
        "import subprocess\nwhile True:\n  try: subprocess.Popen(['sleep', '1000'])\n  except OSError: pass",
    ),
    ("a memory flood", "kept = []\nwhile True: kept.append(bytearray(b'x' * (8 << 20)))"),
    (
        "a disk flood",
        "block = b'x' * (1 << 20)\nwhile True:\n  with open('/tmp/flood', 'wb') as file:\n    try:\n      \
         while True: file.write(block)\n    except OSError: pass",
    ),
    (
        "a network flood",
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nwhile True:\n  \
         try: s.sendto(b'x' * 1400, ('10.203.0.1', 9))\n  except OSError: pass",
    ),
    ("endless output", "while True: print('x' * 4000)"),
];

/// The median time of `1+1`.
async fn median(agent: &mut TestAgent, id: CapsuleId) -> Duration {
    let mut took = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        let ran = agent.run(id, "1+1").await.unwrap();
        assert_eq!(ran.value.as_deref(), Some("2"), "{ran:?}");
        took.push(start.elapsed());
    }
    took.sort();
    took[RUNS / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_of_an_attacker_go_on() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let good = agent.restore(false).await.unwrap();
    agent.run(good, "1+1").await.unwrap();
    for (attack, code) in ATTACKS {
        let attacker = agent.restore(false).await.unwrap();
        let before = median(&mut agent, good).await;
        let idle = agent.get(attacker).await.unwrap().cpu_us;
        let client = agent.client.clone();
        // Longer than everything that is done here: it is ended, it does not end.
        let attacking = tokio::spawn(attack_in(client, attacker, code));
        agent.uses(attacker, attack, |capsule| capsule.cpu_us > idle + 1_000_000).await.unwrap();
        let during = median(&mut agent, good).await;
        let ratio = during.max(FLOOR).as_secs_f64() / before.max(FLOOR).as_secs_f64();
        println!("{attack}: 1+1 took {before:?} before, {during:?} during");
        assert!(ratio < RATIO_MAX, "{attack}: {before:?} before, {during:?} during");
        let ending = Instant::now();
        agent.destroy(attacker).await.unwrap();
        assert!(ending.elapsed() < AT_ONCE, "{attack}: its end took {:?}", ending.elapsed());
        attacking.await.unwrap();
        assert_eq!(agent.get(good).await.unwrap().state(), CapsuleState::Running, "{attack}");
    }
    agent.destroy(good).await.unwrap();
    agent.process.stop().unwrap();
    let log = agent.process.log();
    assert!(!log.contains(" ERROR "), "{log}");
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

/// Runs code until the capsule is gone, and again when it ended before.
async fn attack_in(
    mut client: wire::agent_client::AgentClient<tonic::transport::Channel>,
    id: CapsuleId,
    code: &str,
) {
    loop {
        let request = hearth_proto::wire::run::RunRequest {
            code: code.to_owned(),
            timeout_ms: 600_000,
            ..Default::default()
        };
        let call = wire::ExecuteCall { capsule_id: id.to_string(), request: Some(request) };
        let Ok(events) = client.execute(call).await else { return };
        let mut events = events.into_inner();
        while let Ok(Some(_)) = events.message().await {}
    }
}

/// Stops the guest daemon's service. PID 1 is the daemon too, but no signal stops it.
async fn freeze(agent: &mut TestAgent, id: CapsuleId) {
    // A packet lets it go on. The delay lets the answer out.
    let program = format!(
        "import os, signal, socket, sys, time\n\
         link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         link.bind(('0.0.0.0', {THAW_PORT}))\n\
         time.sleep(1)\n\
         os.kill(int(sys.argv[1]), signal.SIGSTOP)\n\
         link.recv(1)\n\
         os.kill(int(sys.argv[1]), signal.SIGCONT)"
    );
    let script = "service=$(pgrep -P 1 -f envd | head -n 1); test -n \"$service\"; \
                  setsid python3 -c \"$1\" \"$service\" >/dev/null 2>&1 </dev/null &";
    let request = ExecRequest {
        cmd: "/bin/sh".to_owned(),
        args: ["-ec", script, "sh", &program].map(str::to_owned).to_vec(),
        timeout_ms: 30_000,
        ..Default::default()
    };
    let call = wire::ExecCall { capsule_id: id.to_string(), request: Some(request) };
    let mut events = agent.client.exec(call).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}
    while tokio::time::timeout(Duration::from_secs(2), agent.run(id, "1+1")).await.is_ok() {}
}

/// Lets the service of the only capsule go on.
fn thaw(dir: &Path) {
    let mark = hearth_agent::config::Layout::new(dir, dir).mark();
    let left = leftovers::of(dir);
    let vmm =
        left.iter().find(|left| left.starts_with("process ") && left.contains(&format!("-name {mark}")));
    let pid = vmm.unwrap().split_ascii_whitespace().nth(1).unwrap().trim_end_matches(':').parse().unwrap();
    let sent = Netns::of_process(pid)
        .unwrap()
        .inside(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", (GuestNetwork::GUEST, THAW_PORT)));
    assert_eq!(sent.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_answer_is_noticed_and_ended_at_once() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    agent.python(id, "kept = 42").await.unwrap();
    freeze(&mut agent, id).await;
    // Before anybody has noticed: a pause is given up in time, and the capsule is as it was.
    let error = agent.pause(id).await.unwrap_err();
    let status = TestAgent::status(&error).unwrap();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::FailedPrecondition), "{status:?}");
    let lost = agent.seen(id, "the guest to be lost", |capsule| capsule.unresponsive).await.unwrap();
    assert_eq!((lost.state(), lost.reason.as_str()), (CapsuleState::Running, "the guest does not answer"));
    // Now nobody waits for it any more.
    let error = agent.pause(id).await.unwrap_err();
    let status = TestAgent::status(&error).unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("does not answer"), "{status:?}");
    thaw(dir.path());
    agent.seen(id, "the guest to be back", |capsule| !capsule.unresponsive).await.unwrap();
    assert_eq!(agent.python(id, "print(kept)").await.unwrap(), "42");
    agent.pause(id).await.unwrap();
    agent.resume(id).await.unwrap();
    assert_eq!(agent.python(id, "print(kept)").await.unwrap(), "42");

    // One that is waited for by a pause is ended at once.
    freeze(&mut agent, id).await;
    let mut client = agent.client.clone();
    let request = wire::PauseRequest { capsule_id: id.to_string() };
    let pause = tokio::spawn(async move { client.pause(request).await });
    agent.enters(id, CapsuleState::Pausing).await.unwrap();
    let ending = Instant::now();
    agent.destroy(id).await.unwrap();
    assert!(ending.elapsed() < AT_ONCE, "its end took {:?}", ending.elapsed());
    assert!(pause.await.unwrap().is_err());
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
