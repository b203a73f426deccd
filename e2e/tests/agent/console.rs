//! What guests write to their consoles.

use crate::folder;
use hearth_e2e::{agent::TestAgent, leftovers};
use hearth_proto::{
    id::CapsuleId,
    wire::agent::{self as wire, CapsuleState},
};
use tonic::Code;

const ALONE: [(&str, &str); 1] = [("HEARTH_PARKED", "0")];
/// Bytes that are kept of a console.
const KEPT: usize = 1 << 20;

async fn console(agent: &mut TestAgent, id: CapsuleId) -> String {
    let request = wire::GetConsoleRequest { capsule_id: id.to_string() };
    let reply = agent.client.get_console(request).await.unwrap().into_inner();
    assert!(reply.console.len() <= KEPT, "{}", reply.console.len());
    String::from_utf8_lossy(&reply.console).into_owned()
}

/// Waits until the console ends with a line: the guest's device is slower than its programs.
async fn ends_with(agent: &mut TestAgent, id: CapsuleId, line: &str) -> String {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        let text = console(agent, id).await;
        if text.trim_end().ends_with(line) {
            return text;
        }
        assert!(tokio::time::Instant::now() < deadline, "no {line} at the end of {} bytes", text.len());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_outlives_pauses_agents_and_the_capsule() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    let other = agent.restore(false).await.unwrap();
    agent.shell(id, "echo first-life > /dev/ttyS0").await.unwrap();
    ends_with(&mut agent, id, "first-life").await;
    agent.pause(id).await.unwrap();
    assert!(console(&mut agent, id).await.contains("first-life"), "of a paused one");
    agent.resume(id).await.unwrap();
    agent.shell(id, "echo second-life > /dev/ttyS0").await.unwrap();
    ends_with(&mut agent, id, "second-life").await;
    agent.process.kill().unwrap();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.shell(id, "echo next-agent > /dev/ttyS0").await.unwrap();
    let text = ends_with(&mut agent, id, "next-agent").await;
    let at = |line: &str| text.find(line).unwrap_or_else(|| panic!("no {line} in {text}"));
    assert!(at("first-life") < at("second-life") && at("second-life") < at("next-agent"), "{text}");
    assert!(!console(&mut agent, other).await.contains("life"), "another's");
    // The kernel's last words are of a capsule that failed. The call's stream breaks with it.
    let _ = agent.shell(id, "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger").await;
    agent.enters(id, CapsuleState::Failed).await.unwrap();
    let text = console(&mut agent, id).await;
    assert!(text.contains("first-life") && text.contains("sysrq"), "{text}");
    let nobody = wire::GetConsoleRequest { capsule_id: CapsuleId::new().to_string() };
    assert_eq!(agent.client.get_console(nobody).await.unwrap_err().code(), Code::NotFound);
    for id in [id, other] {
        agent.destroy(id).await.unwrap();
    }
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_floods_its_console_takes_a_mebibyte() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &ALONE).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    let flood = "i=0; while [ $i -lt 30 ]; do head -c 65000 /dev/zero | tr '\\0' x; i=$((i+1)); done > /dev/ttyS0; \
        echo the-end > /dev/ttyS0";
    agent.shell(id, flood).await.unwrap();
    let text = ends_with(&mut agent, id, "the-end").await;
    assert_eq!(text.len(), KEPT, "the newest of 1.9 MB");
    let rings: Vec<u64> = std::fs::read_dir(dir.path().join("agent/vmms"))
        .unwrap()
        .flatten()
        .filter_map(|vmm| std::fs::metadata(vmm.path().join("console.ring")).ok())
        .map(|ring| ring.len())
        .collect();
    assert_eq!(rings, [KEPT as u64 + 8]);
    agent.destroy(id).await.unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
