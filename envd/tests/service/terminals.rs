//! Terminals: owner, size, signals, scrollback, and everything that is written to them.

use crate::{
    attached::{Client, background, tagged},
    capsule::{Capsule, SOON, TOKEN, call, program, run, shell},
};
use hearth_proto::wire::process::{ExecRequest, ResizeRequest, StartRequest, Terminal};
use std::time::Duration;
use tokio::time::timeout;
use tonic::Code;

fn on_terminal(command: ExecRequest, tag: &str, cols: u32, rows: u32) -> StartRequest {
    StartRequest { terminal: Some(Terminal { cols, rows }), ..background(command, tag) }
}

async fn resize(client: &Client, tag: &str, cols: u32, rows: u32) -> Result<(), tonic::Status> {
    let request = ResizeRequest { process: tagged(tag), terminal: Some(Terminal { cols, rows }) };
    client.0.clone().resize(call(request, TOKEN)).await.map(drop)
}

#[tokio::test]
async fn a_terminal_is_the_users_and_has_the_size_that_was_asked_for() {
    let (capsule, _) = Capsule::active().await;
    let client = Client::of(&capsule).await;
    let script = "stty size; stat -c '%U %a' $(tty); echo $TERM; test -t 0 -a -t 1 -a -t 2 && echo tty; ps -o tty=,sid= -p $$ | tr -s ' '; echo $$";
    let request = ExecRequest { user: "user".to_owned(), ..shell(script) };
    let started = client.start(on_terminal(request, "", 0, 0)).await.unwrap();
    assert!(started.tag.starts_with("pty-"), "{started:?}");
    let heard = client.hear(tagged(&started.tag)).await.unwrap();
    assert!(heard.stdout.is_empty() && heard.stderr.is_empty());
    let text = String::from_utf8(heard.terminal).unwrap();
    // As a terminal prints it.
    let lines: Vec<_> = text.split_terminator("\r\n").collect();
    assert_eq!(lines[..1], ["24 80"], "{lines:?}");
    assert!(lines[1].starts_with("user 6"), "{lines:?}");
    assert_eq!(lines[2..4], ["xterm-256color", "tty"]);
    assert!(lines[4].starts_with("pts/") && lines[4].ends_with(lines[5]), "{lines:?}");
    let env = [("TERM".to_owned(), "dumb".to_owned())].into();
    client.start(on_terminal(ExecRequest { env, ..shell("echo $TERM") }, "dumb", 10, 10)).await.unwrap();
    assert_eq!(client.hear(tagged("dumb")).await.unwrap().terminal, b"dumb\r\n");
    let refused = client.start(on_terminal(shell("true"), "big", 65_536, 1)).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().starts_with("terminal.cols:"));
}

#[tokio::test]
async fn a_shell_is_typed_to_resized_interrupted_and_found_again() {
    let (capsule, _) = Capsule::active().await;
    let client = Client::of(&capsule).await;
    let env = [("PS1".to_owned(), "ready> ".to_owned())].into();
    let bash = ExecRequest { env, ..program("bash", &["--norc", "-i"]) };
    client.start(on_terminal(bash, "shell", 100, 30)).await.unwrap();
    client.shows(tagged("shell"), "ready>").await;
    client.write(tagged("shell"), b"trap 'echo resized' WINCH; stty size\n", false).await.unwrap();
    client.shows(tagged("shell"), "30 100").await;
    resize(&client, "shell", 132, 43).await.unwrap();
    client.write(tagged("shell"), b"stty size\n", false).await.unwrap();
    let seen = client.shows(tagged("shell"), "43 132").await;
    assert!(String::from_utf8_lossy(&seen.terminal).contains("resized"), "{seen:?}");
    // One program in the foreground says it and waits: ctrl-C between two would be the shell's.
    let typed = "sh -c 'echo grüße-€; exec sleep 1000'\n";
    client.write(tagged("shell"), typed.as_bytes(), false).await.unwrap();
    client.shows(tagged("shell"), "grüße-€\r\n").await;
    client.write(tagged("shell"), b"\x03", false).await.unwrap();
    client.write(tagged("shell"), b"echo status $?\n", false).await.unwrap();
    client.shows(tagged("shell"), "status 130").await;
    // Another client finds it by its tag, with all that it showed.
    let other = Client::of(&capsule).await;
    let replay = other.now(tagged("shell")).await;
    let text = String::from_utf8(replay.terminal).unwrap();
    assert!(!replay.attached.truncated && replay.attached.process.unwrap().terminal);
    for part in ["30 100", "43 132", "grüße-€", "^C"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Its end of file.
    client.write(tagged("shell"), b"", true).await.unwrap();
    let exited = timeout(SOON, client.hear(tagged("shell"))).await.unwrap().unwrap().exited.unwrap();
    assert_eq!(exited.exit_code, 0);
    let gone = resize(&client, "shell", 80, 24).await.unwrap_err();
    assert_eq!(gone.code(), Code::FailedPrecondition);
    client.start(background(program("sleep", &["100"]), "plain")).await.unwrap();
    assert_eq!(resize(&client, "plain", 80, 24).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn nothing_that_is_written_to_a_terminal_is_lost() {
    let (capsule, mut envd) = Capsule::active().await;
    let client = Client::of(&capsule).await;
    const BYTES: usize = 30_000_000;
    let script = format!("stty raw; yes 0123456789abcde | head -c {BYTES}");
    client.start(on_terminal(shell(&script), "flood", 0, 0)).await.unwrap();
    let reading = tokio::spawn({
        let client = client.clone();
        async move { client.hear(tagged("flood")).await.unwrap() }
    });
    // Others are served meanwhile.
    while !reading.is_finished() {
        let ran = timeout(Duration::from_secs(5), run(&mut envd, program("true", &[]))).await.unwrap();
        assert_eq!(ran.unwrap().exited.exit_code, 0);
    }
    let heard = reading.await.unwrap();
    assert_eq!((heard.terminal.len(), heard.exited.unwrap().exit_code), (BYTES, 0));
    assert!(heard.terminal.chunks(16).all(|line| b"0123456789abcde\n".starts_with(line)));
    for number in 0..200 {
        let tag = format!("last-{number}");
        client.start(on_terminal(shell("echo last words"), &tag, 0, 0)).await.unwrap();
        assert_eq!(client.hear(tagged(&tag)).await.unwrap().terminal, b"last words\r\n");
    }
}

#[tokio::test]
async fn the_end_of_a_terminal_is_the_end_of_what_it_holds() {
    let (capsule, _) = Capsule::active().await;
    let client = Client::of(&capsule).await;
    let heard_it = capsule.folder.path().join("home/hangup");
    let script = format!(
        "set -m; sh -c 'trap \"echo hup > {}; exit\" HUP; echo up; while :; do sleep 0.1; done' & sleep 0.5; kill -9 $$",
        heard_it.display()
    );
    client.start(on_terminal(program("bash", &["-c", &script]), "gone", 0, 0)).await.unwrap();
    let heard = client.hear(tagged("gone")).await.unwrap();
    assert_eq!(heard.exited.unwrap().signal, libc::SIGKILL);
    // The background job lost its terminal: by the signal, or at its next write.
    let cgroup = capsule.cgroup.clone();
    client.start(on_terminal(program("sleep", &["100"]), "killed", 0, 0)).await.unwrap();
    client.signal(tagged("killed"), libc::SIGKILL).await.unwrap();
    assert_eq!(client.hear(tagged("killed")).await.unwrap().exited.unwrap().signal, libc::SIGKILL);
    cgroup.kill().unwrap();
    assert!(cgroup.wait_empty(SOON).unwrap());
}
