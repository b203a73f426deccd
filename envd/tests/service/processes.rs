//! Background processes: what is kept of them, who is told, what signals and input reach.

use crate::{
    attached::{Client, background, hear, numbered, tagged},
    capsule::{Capsule, SOON, TOKEN, call, program, shell, until},
};
use hearth_proto::wire::process::{ExecRequest, StartRequest, attach_event::Event, exec_event};
use std::{collections::HashMap, time::Duration};
use tokio::time::timeout;
use tonic::Code;

async fn active() -> (Capsule, Client) {
    let (capsule, _) = Capsule::active().await;
    let client = Client::of(&capsule).await;
    (capsule, client)
}

#[tokio::test]
async fn output_before_the_first_reader_and_right_before_the_exit_is_kept() {
    let (_capsule, client) = active().await;
    for number in 0..300 {
        let script = format!("echo {number}; seq 1500; echo end >&2; exit 3");
        let started = client.start(background(shell(&script), "")).await.unwrap();
        assert!(started.tag.starts_with("proc-") && started.tag.len() == 13, "{started:?}");
        let heard = client.hear(numbered(started.pid)).await.unwrap();
        let expected: String =
            std::iter::once(number).chain(1..=1500).map(|number| format!("{number}\n")).collect();
        assert!(heard.stdout == expected.as_bytes() && heard.stderr == b"end\n");
        assert_eq!((heard.exited.unwrap().exit_code, heard.attached.truncated), (3, false));
    }
}

#[tokio::test]
async fn a_tag_is_unique_while_its_process_runs_and_free_afterwards() {
    let (_capsule, client) = active().await;
    let first = client.start(background(shell("echo one; sleep 100"), "job")).await.unwrap();
    let taken = client.start(background(shell("echo two"), "job")).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");
    client.shows(tagged("job"), "one").await;
    client.signal(tagged("job"), libc::SIGTERM).await.unwrap();
    let exited = client.hear(numbered(first.pid)).await.unwrap().exited.unwrap();
    assert_eq!((exited.exit_code, exited.signal), (143, 15));
    until("the tag is free", || true).await;
    let second = client.start(background(shell("echo two"), "job")).await.unwrap();
    let heard = client.hear(tagged("job")).await.unwrap();
    assert_eq!((heard.stdout.as_slice(), heard.attached.process.unwrap().pid), (&b"two\n"[..], second.pid));
    let old = client.hear(numbered(first.pid)).await.unwrap();
    assert_eq!(old.stdout, b"one\n", "the one before is still found by its number");
    for tag in ["1234", "a b", &"x".repeat(65)] {
        let refused = client.start(background(shell("true"), tag)).await.unwrap_err();
        assert!(
            refused.code() == Code::InvalidArgument && refused.message().starts_with("tag:"),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn what_runs_is_listed_execs_too_and_what_ended_is_remembered() {
    let (_capsule, mut envd) = Capsule::active().await;
    let client = Client::of(&_capsule).await;
    let mut exec = envd.exec(call(program("sleep", &["100"]), TOKEN)).await.unwrap().into_inner();
    let Some(exec_event::Event::Started(started)) = exec.message().await.unwrap().unwrap().event else {
        panic!()
    };
    let request = ExecRequest { user: "user".to_owned(), cwd: "/tmp".to_owned(), ..shell("exit 5") };
    client.start(background(request, "short")).await.unwrap();
    client.hear(tagged("short")).await.unwrap();
    let running = client.list(false).await;
    assert_eq!(running.len(), 1, "{running:?}");
    assert_eq!(
        (running[0].pid, running[0].cmd.as_str(), &running[0].args[..]),
        (started.pid, "sleep", &["100".to_owned()][..])
    );
    let all = client.list(true).await;
    let short = all.iter().find(|process| process.tag == "short").unwrap();
    assert_eq!((short.user.as_str(), short.cwd.as_str(), short.terminal), ("user", "/tmp", false));
    assert_eq!(short.exited.as_ref().unwrap().exit_code, 5);
    assert!(0 < short.started_at_ms);
    // Exec's output has one reader, its caller; but it can be signalled.
    let refused = client.attach(numbered(started.pid), true).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    client.signal(numbered(started.pid), libc::SIGTERM).await.unwrap();
    let Some(exec_event::Event::Exited(exited)) = exec.message().await.unwrap().unwrap().event else {
        panic!()
    };
    assert_eq!(exited.signal, libc::SIGTERM);
    assert_eq!(client.signal(tagged("short"), 15).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.signal(tagged("never"), 15).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.signal(tagged("short"), 65).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.signal(None, 15).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn late_askers_learn_the_end_of_the_last_256() {
    let (_capsule, client) = active().await;
    for number in 0..260 {
        let tag = format!("t-{number}");
        client.start(background(program("true", &[]), &tag)).await.unwrap();
        client.hear(tagged(&tag)).await.unwrap();
    }
    assert_eq!(client.attach(tagged("t-0"), true).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.hear(tagged("t-259")).await.unwrap().exited.unwrap().exit_code, 0);
    assert_eq!(client.list(true).await.len(), 256);
}

#[tokio::test]
async fn only_the_newest_output_is_kept_and_the_replay_says_so() {
    let (_capsule, client) = active().await;
    let request =
        StartRequest { keep_bytes: 1000, ..background(shell("seq 1 200000; echo done; sleep 100"), "flood") };
    client.start(request).await.unwrap();
    // Nobody reads: after a moment the process goes on without a reader.
    let heard = client.shows(tagged("flood"), "done").await;
    assert!(heard.attached.truncated && heard.exited.is_none());
    assert_eq!(heard.stdout.len(), 1000);
    assert!(heard.stdout.ends_with(b"199999\n200000\ndone\n"));
    client.signal(tagged("flood"), libc::SIGKILL).await.unwrap();
    let heard = client.hear(tagged("flood")).await.unwrap();
    assert_eq!((heard.stdout.len(), heard.exited.unwrap().exit_code), (1000, 137));
}

#[tokio::test]
async fn all_attached_readers_get_every_byte_and_one_that_does_not_read_is_cut() {
    let (capsule, client) = active().await;
    const BYTES: usize = 40_000_000;
    let script = format!("read go; yes 0123456789 | head -c {BYTES}; echo END >&2");
    let request = StartRequest { keep_stdin: true, ..background(shell(&script), "big") };
    client.start(request).await.unwrap();
    let slow = Client::of(&capsule).await;
    let mut stuck = slow.attach(tagged("big"), false).await.unwrap();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(
                async move { hear(client.attach(tagged("big"), true).await.unwrap()).await.unwrap() },
            )
        })
        .collect();
    client.write(tagged("big"), b"go\n", false).await.unwrap();
    for reader in readers {
        let heard = timeout(Duration::from_secs(60), reader).await.unwrap().unwrap();
        assert_eq!((heard.stdout.len(), heard.stderr.as_slice()), (BYTES, &b"END\n"[..]));
        assert!(heard.stdout.chunks(11).all(|line| b"0123456789\n".starts_with(line)));
    }
    let cut = loop {
        match stuck.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended in order"),
            Err(status) => break status,
        }
    };
    assert_eq!(cut.code(), Code::ResourceExhausted, "{cut:?}");
    assert!(capsule.peak_kib() < 64 << 10, "{} KiB", capsule.peak_kib());
}

#[tokio::test]
async fn signals_reach_the_whole_tree() {
    let (capsule, client) = active().await;
    let script = "trap 'echo main; exit' USR1; setsid sh -c 'trap \"echo other; exit\" USR1; echo up; while :; do sleep 0.1; done' & while :; do sleep 0.1; done";
    client.start(background(shell(script), "tree")).await.unwrap();
    client.shows(tagged("tree"), "up").await;
    client.signal(tagged("tree"), libc::SIGUSR1).await.unwrap();
    // The sleeps die of it, both shells tell.
    let heard = client.hear(tagged("tree")).await.unwrap();
    assert!(String::from_utf8_lossy(&heard.stdout).contains("main"), "{heard:?}");
    let deaf = "trap '' TERM HUP; setsid sh -c 'trap \"\" TERM; while :; do sleep 100; done' & echo up; while :; do sleep 100; done";
    client.start(background(shell(deaf), "deaf")).await.unwrap();
    client.shows(tagged("deaf"), "up").await;
    client.signal(tagged("deaf"), libc::SIGKILL).await.unwrap();
    assert_eq!(client.hear(tagged("deaf")).await.unwrap().exited.unwrap().signal, libc::SIGKILL);
    assert!(capsule.cgroup.wait_empty(SOON).unwrap());
}

#[tokio::test]
async fn input_is_written_when_it_is_taken_and_can_be_closed() {
    let (_capsule, client) = active().await;
    let first = ExecRequest { stdin: Some(b"first ".to_vec()), ..program("cat", &[]) };
    let request = StartRequest { keep_stdin: true, ..background(first, "cat") };
    client.start(request).await.unwrap();
    client.write(tagged("cat"), b"second ", false).await.unwrap();
    client.write(tagged("cat"), b"third", true).await.unwrap();
    let heard = client.hear(tagged("cat")).await.unwrap();
    assert_eq!((heard.stdout.as_slice(), heard.exited.unwrap().exit_code), (&b"first second third"[..], 0));
    let closed = client.write(tagged("cat"), b"more", false).await.unwrap_err();
    assert_eq!(closed.code(), Code::FailedPrecondition, "{closed:?}");
    client.start(background(program("sleep", &["100"]), "none")).await.unwrap();
    assert_eq!(client.write(tagged("none"), b"x", false).await.unwrap_err().code(), Code::FailedPrecondition);
    let deaf = StartRequest { keep_stdin: true, ..background(program("sleep", &["100"]), "deaf") };
    client.start(deaf).await.unwrap();
    let full = timeout(SOON, client.write(tagged("deaf"), &vec![0; 1 << 20], false)).await.unwrap();
    let full = full.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
    assert!(full.message().contains("65536"), "it took what the pipe holds: {full:?}");
}

#[tokio::test]
async fn a_time_limit_kills_the_tree_and_none_is_none() {
    let (capsule, client) = active().await;
    let request = ExecRequest { timeout_ms: 500, ..shell("sleep 100 & echo up; wait") };
    client.start(background(request, "short")).await.unwrap();
    let exited = client.hear(tagged("short")).await.unwrap().exited.unwrap();
    assert_eq!((exited.timed_out, exited.signal), (true, 9));
    assert!(capsule.cgroup.wait_empty(SOON).unwrap());
}

#[tokio::test]
async fn what_cannot_be_started_is_said_at_once_and_the_number_is_bounded() {
    let (capsule, client) = active().await;
    for (command, field) in [
        (program("no-such-program", &[]), "cmd:"),
        (program("/etc/passwd", &[]), "cmd:"),
        (program("", &[]), "cmd:"),
        (ExecRequest { cwd: "/no/such".to_owned(), ..program("true", &[]) }, "cwd:"),
        (ExecRequest { user: "no-such".to_owned(), ..program("true", &[]) }, "user:"),
        (
            ExecRequest { env: HashMap::from([("A=".to_owned(), String::new())]), ..program("true", &[]) },
            "env:",
        ),
    ] {
        let status = client.start(background(command, "tag")).await.unwrap_err();
        assert!(status.code() == Code::InvalidArgument && status.message().starts_with(field), "{status:?}");
    }
    let mut started = 0;
    let full = loop {
        match client.start(background(program("sleep", &["1000"]), "")).await {
            Ok(_) => started += 1,
            Err(status) => break status,
        }
    };
    assert_eq!((full.code(), started), (Code::ResourceExhausted, 256), "{full:?}");
    assert_eq!(client.list(false).await.len(), 256);
    for process in client.list(false).await {
        client.signal(numbered(process.pid), libc::SIGKILL).await.unwrap();
    }
    assert!(capsule.cgroup.wait_empty(SOON).unwrap());
}

#[tokio::test]
async fn attaching_later_follows_and_leaving_does_not_end_the_process() {
    let (_capsule, client) = active().await;
    let script = "echo before; read line; echo after $line";
    let request = StartRequest { keep_stdin: true, ..background(shell(script), "live") };
    client.start(request).await.unwrap();
    client.shows(tagged("live"), "before").await;
    let left = client.attach(tagged("live"), true).await.unwrap();
    drop(left);
    let mut follower = client.attach(tagged("live"), false).await.unwrap();
    let Some(Event::Attached(attached)) = follower.message().await.unwrap().unwrap().event else { panic!() };
    assert!(!attached.truncated && attached.process.unwrap().exited.is_none());
    client.write(tagged("live"), b"x\n", false).await.unwrap();
    let mut live = Vec::new();
    while let Some(event) = follower.message().await.unwrap() {
        if let Some(Event::Stdout(bytes)) = event.event {
            live.extend(bytes);
        }
    }
    assert_eq!(live, b"after x\n");
}
