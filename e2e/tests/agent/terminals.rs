//! Terminals of capsules, through the agent.

use crate::folder;
use hearth_e2e::{
    agent::TestAgent,
    guest::{self, attach, hear, script, shows, tagged, types},
    leftovers,
};
use hearth_proto::wire::process::{ResizeRequest, Terminal};
use std::time::Duration;
use tokio::time::{Instant, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_resized_interrupted_and_found_again_with_its_scrollback() {
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    let mut processes = guest::processes(dir.path(), &id.to_string()).unwrap();
    processes.start(script("shell", "exec bash --norc -i", Some((100, 30)))).await.unwrap();
    types(&processes, "shell", b"stty size; echo $TERM\n").await.unwrap();
    shows(&processes, "shell", "30 100").await.unwrap();
    shows(&processes, "shell", "xterm-256color").await.unwrap();
    let size = Some(Terminal { cols: 132, rows: 43 });
    processes.resize(ResizeRequest { process: tagged("shell"), terminal: size }).await.unwrap();
    types(&processes, "shell", b"stty size\n").await.unwrap();
    shows(&processes, "shell", "43 132").await.unwrap();
    types(&processes, "shell", "echo grüße-€; sleep 1000\n".as_bytes()).await.unwrap();
    shows(&processes, "shell", "grüße-€\r\n").await.unwrap();
    types(&processes, "shell", b"\x03").await.unwrap();
    types(&processes, "shell", b"echo status $?\n").await.unwrap();
    shows(&processes, "shell", "status 130").await.unwrap();
    // Somebody else, on another connection.
    let other = guest::processes(dir.path(), &id.to_string()).unwrap();
    let mut events = attach(&other, "shell", true, false).await.unwrap();
    let again = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(event) = events.message().await.unwrap() {
            if let Some(hearth_proto::wire::process::attach_event::Event::Terminal(bytes)) = event.event {
                seen.extend(bytes);
            }
        }
        String::from_utf8(seen).unwrap()
    });
    types(&processes, "shell", b"exit\n").await.unwrap();
    let text = timeout(Duration::from_secs(60), again).await.unwrap().unwrap();
    for part in ["30 100", "43 132", "grüße-€", "status 130", "exit"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_arrives_whole_and_another_capsule_is_not_slowed_for_it() {
    const BYTES: usize = 100_000_000;
    let dir = folder();
    let mut agent = TestAgent::start(dir.path(), &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let (id, other) = (agent.restore(false).await.unwrap(), agent.restore(false).await.unwrap());
    let latency = async |agent: &mut TestAgent| {
        let mut all = Vec::new();
        for _ in 0..15 {
            let begun = Instant::now();
            agent.shell(other, "true").await.unwrap();
            all.push(begun.elapsed());
        }
        all.sort();
        all[all.len() / 2]
    };
    let alone = latency(&mut agent).await;
    let mut processes = guest::processes(dir.path(), &id.to_string()).unwrap();
    let line = "0123456789abcde\n";
    let flood = format!("stty raw; yes 0123456789abcde | head -c {BYTES}");
    processes.start(script("flood", &flood, Some((80, 24)))).await.unwrap();
    let begun = Instant::now();
    let reading = tokio::spawn(hear(attach(&processes, "flood", true, false).await.unwrap()));
    let beside = latency(&mut agent).await;
    assert!(!reading.is_finished(), "the flood was over too early to say anything");
    let heard = timeout(Duration::from_secs(120), reading).await.unwrap().unwrap().unwrap();
    let rate = BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64();
    println!("terminal: {rate:.1} MB/s; exec in another capsule: {alone:?} alone, {beside:?} beside it");
    assert_eq!(heard.output.len(), BYTES);
    assert!(heard.output.chunks(line.len()).all(|chunk| line.as_bytes().starts_with(chunk)));
    assert_eq!(heard.exited.unwrap().exit_code, 0);
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
