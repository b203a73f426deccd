//! Background processes of capsules, through the agent.

use crate::folder;
use hearth_e2e::{
    agent::TestAgent,
    guest::{self, Processes, attach, hear, script, shows, tagged, types},
    leftovers,
};
use hearth_proto::{
    id::CapsuleId,
    wire::{
        agent::{self as wire, CapsuleState},
        process::{ExecRequest, ListProcessesRequest, SignalRequest, StartRequest, exec_event},
    },
};
use std::{path::Path, time::Duration};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

const DEADLINE: Duration = Duration::from_secs(90);

async fn start(dir: &Path) -> (TestAgent, CapsuleId, Processes) {
    let mut agent = TestAgent::start(dir, &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    let processes = guest::processes(dir, &id.to_string()).unwrap();
    (agent, id, processes)
}

fn end(dir: &Path, mut agent: TestAgent) {
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir), Vec::<String>::new());
}

async fn list(processes: &Processes, ended: bool) -> Result<Vec<String>, Status> {
    let reply = processes.clone().list(ListProcessesRequest { ended }).await?.into_inner();
    Ok(reply.processes.into_iter().map(|process| process.tag).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_echoes_lose_no_byte_in_either_way() {
    let dir = folder();
    let (agent, id, processes) = start(dir.path()).await;
    let echo = |word: String| ExecRequest { cmd: "echo".to_owned(), args: vec![word], ..Default::default() };
    let mut all = tokio::task::JoinSet::new();
    let begun = Instant::now();
    for lane in 0..4 {
        let mut client = agent.client.clone();
        all.spawn(async move {
            for number in 0..250 {
                let word = format!("x{lane}-{number}");
                let call = wire::ExecCall { capsule_id: id.to_string(), request: Some(echo(word.clone())) };
                let mut events = client.exec(call).await.unwrap().into_inner();
                let (mut output, mut code) = (Vec::new(), None);
                while let Some(event) = events.message().await.unwrap() {
                    match event.event {
                        Some(exec_event::Event::Stdout(bytes)) => output.extend(bytes),
                        Some(exec_event::Event::Exited(exited)) => code = Some(exited.exit_code),
                        _ => {}
                    }
                }
                assert_eq!((output, code), (format!("{word}\n").into_bytes(), Some(0)));
            }
        });
    }
    while let Some(joined) = all.join_next().await {
        joined.unwrap();
    }
    println!("1,000 times Exec: {:?}", begun.elapsed());
    let begun = Instant::now();
    for lane in 0..4 {
        let mut processes = processes.clone();
        all.spawn(async move {
            for number in 0..250 {
                let word = format!("x{lane}-{number}");
                let request = StartRequest { command: Some(echo(word.clone())), ..Default::default() };
                let started = processes.start(request).await.unwrap().into_inner();
                let heard = hear(attach(&processes, &started.tag, true, false).await.unwrap()).await.unwrap();
                assert_eq!(heard.output, format!("{word}\n").into_bytes());
                assert_eq!((heard.exited.unwrap().exit_code, heard.attached.truncated), (0, false));
            }
        });
    }
    while let Some(joined) = all.join_next().await {
        joined.unwrap();
    }
    println!("1,000 times Start and Attach: {:?}", begun.elapsed());
    end(dir.path(), agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_and_terminals_go_on_after_a_pause() {
    let dir = folder();
    let (mut agent, id, mut processes) = start(dir.path()).await;
    let counting = "n=0; while read -r line; do n=$((n+1)); echo $n $line; done";
    processes.start(StartRequest { keep_stdin: true, ..script("count", counting, None) }).await.unwrap();
    processes.start(script("shell", "exec bash --norc -i", Some((90, 20)))).await.unwrap();
    processes.start(script("short", "echo done; exit 7", None)).await.unwrap();
    types(&processes, "count", b"one\n").await.unwrap();
    shows(&processes, "count", "1 one").await.unwrap();
    types(&processes, "shell", b"kept=here; stty size\n").await.unwrap();
    shows(&processes, "shell", "20 90").await.unwrap();
    hear(attach(&processes, "short", true, false).await.unwrap()).await.unwrap();
    let following = tokio::spawn(hear(attach(&processes, "count", true, false).await.unwrap()));
    agent.pause(id).await.unwrap();
    let broken = timeout(DEADLINE, following).await.unwrap().unwrap().unwrap_err();
    assert_eq!(broken.code(), Code::Unavailable, "{broken:?}");
    assert!(broken.message().contains("paus"), "{broken:?}");
    let refused = list(&processes, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    agent.resume(id).await.unwrap();
    assert_eq!(list(&processes, true).await.unwrap(), ["count", "shell", "short"]);
    types(&processes, "count", b"two\n").await.unwrap();
    let seen = shows(&processes, "count", "2 two").await.unwrap();
    assert_eq!(seen.text(), "1 one\n2 two\n", "what was before the pause is replayed");
    types(&processes, "shell", b"echo $kept again\n").await.unwrap();
    assert!(shows(&processes, "shell", "here again").await.unwrap().text().contains("20 90"));
    let short = hear(attach(&processes, "short", true, false).await.unwrap()).await.unwrap();
    assert_eq!((short.text().as_str(), short.exited.unwrap().exit_code), ("done\n", 7));
    end(dir.path(), agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_use_and_a_call_wakes_an_idle_capsule() {
    let dir = folder();
    let (mut agent, _, _) = start(dir.path()).await;
    let idle = || wire::RestoreRequest { idle_timeout_ms: 1_500, ..Default::default() };
    let id = agent.restore_as(idle()).await.unwrap();
    let mut processes = guest::processes(dir.path(), &id.to_string()).unwrap();
    processes.start(StartRequest { keep_stdin: true, ..script("cat", "cat", None) }).await.unwrap();
    let follower = attach(&processes, "cat", false, false).await.unwrap();
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        assert_eq!(agent.get(id).await.unwrap().state(), CapsuleState::Running, "it is attached to");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(follower);
    agent.enters(id, CapsuleState::Paused).await.unwrap();
    assert_eq!(list(&processes, false).await.unwrap(), ["cat"], "its next use brings it back");
    types(&processes, "cat", b"awake\n").await.unwrap();
    shows(&processes, "cat", "awake").await.unwrap();
    end(dir.path(), agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_name_no_capsule_are_refused_and_streams_end_with_theirs() {
    let dir = folder();
    let (mut agent, id, mut processes) = start(dir.path()).await;
    for (capsule, code) in [
        ("", Code::InvalidArgument),
        ("nonsense", Code::InvalidArgument),
        (CapsuleId::new().to_string().as_str(), Code::NotFound),
    ] {
        let status = list(&guest::processes(dir.path(), capsule).unwrap(), false).await.unwrap_err();
        assert_eq!(status.code(), code, "{capsule:?}: {status:?}");
    }
    let missing = attach(&processes, "nobody", true, false).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing:?}");
    processes.start(script("sleep", "sleep 1000", None)).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(attach(&processes, "sleep", false, false).await.unwrap());
    }
    // Nobody waits for those that only follow, on the guest's connection or ours.
    let listed = timeout(Duration::from_secs(20), list(&processes, false)).await.unwrap().unwrap();
    assert_eq!(listed, ["sleep"]);
    assert_eq!(agent.python(id, "print(6*7)").await.unwrap(), "42");
    agent.destroy(id).await.unwrap();
    for stream in streams {
        let status = timeout(DEADLINE, hear(stream)).await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    end(dir.path(), agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_hold_nobody_up_but_their_process_and_are_cut() {
    let dir = folder();
    let (mut agent, id, mut processes) = start(dir.path()).await;
    let flood = StartRequest {
        keep_stdin: true,
        keep_bytes: 4096,
        ..script("flood", "read go; yes | head -c 30000000; echo end", None)
    };
    processes.start(flood).await.unwrap();
    // On connections of their own: what one does not read must not hold the others up on the way from the guest.
    let slow = guest::processes(dir.path(), &id.to_string()).unwrap();
    let mut stuck = attach(&slow, "flood", true, false).await.unwrap();
    let fast = tokio::spawn(hear(attach(&processes, "flood", true, false).await.unwrap()));
    types(&processes, "flood", b"go\n").await.unwrap();
    for _ in 0..5 {
        let ran = timeout(Duration::from_secs(20), agent.python(id, "print(6*7)")).await.unwrap();
        assert_eq!(ran.unwrap(), "42");
        assert_eq!(
            timeout(Duration::from_secs(20), list(&processes, false)).await.unwrap().unwrap(),
            ["flood"]
        );
    }
    let heard = timeout(DEADLINE, fast).await.unwrap().unwrap().unwrap();
    assert_eq!(heard.output.len(), 30_000_004);
    let cut = loop {
        match stuck.message().await {
            Ok(event) => assert!(event.is_some(), "it ended in order"),
            Err(status) => break status,
        }
    };
    assert_eq!(cut.code(), Code::ResourceExhausted, "{cut:?}");
    // What is kept is the newest, and the tag is free again.
    let late = hear(attach(&processes, "flood", true, false).await.unwrap()).await.unwrap();
    assert!(late.attached.truncated && late.output.len() == 4096 && late.text().ends_with("y\nend\n"));
    processes.start(script("flood", "sleep 1000", None)).await.unwrap();
    let taken = processes.start(script("flood", "true", None)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");
    processes.signal(SignalRequest { process: tagged("flood"), signal: 9 }).await.unwrap();
    let killed = hear(attach(&processes, "flood", true, false).await.unwrap()).await.unwrap();
    assert_eq!(killed.exited.unwrap().signal, 9);
    end(dir.path(), agent);
}
