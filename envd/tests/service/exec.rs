//! What a process is given and what is heard of it.

use crate::capsule::{Capsule, TOKEN, call, program, run, shell};
use hearth_proto::wire::process::ExecRequest;
use std::collections::HashMap;
use tonic::Code;

#[tokio::test]
async fn all_output_before_the_exit_arrives_a_thousand_times() {
    let (_capsule, client) = Capsule::active().await;
    let expected: String = (1..=1500).map(|number| format!("{number}\n")).collect();
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (mut client, expected) = (client.clone(), expected.clone());
        runs.spawn(async move {
            for _ in 0..250 {
                let outcome = run(&mut client, shell("seq 1500; echo end >&2")).await.unwrap();
                assert_eq!(outcome.stdout, expected.as_bytes());
                assert_eq!((outcome.stderr.as_slice(), outcome.exited.exit_code), (&b"end\n"[..], 0));
            }
        });
    }
    while let Some(joined) = runs.join_next().await {
        joined.unwrap();
    }
}

#[tokio::test]
async fn a_process_gets_its_user_home_and_environment() {
    let (capsule, mut client) = Capsule::active().await;
    let script = "id -u; id -g; id -G; pwd; echo $HOME $USER $LOGNAME $SHELL $LANG $PATH $CAPSULE $MINE; cat /proc/self/oom_score_adj; ps -o sid= -p $$ | tr -d ' '; echo $$";
    let env = HashMap::from([("MINE".to_owned(), "m".to_owned())]);
    let request = ExecRequest { user: "user".to_owned(), env, ..shell(script) };
    let outcome = run(&mut client, request).await.unwrap();
    let lines: Vec<_> = outcome.text().lines().collect();
    let home = capsule.home();
    assert_eq!(lines[..4], ["1000", "1000", "1000 27 4242", &home]);
    let path = hearth_envd::process::environment::PATH;
    assert_eq!(lines[4], format!("{home} user user /bin/sh C.UTF-8 {path} yes m"));
    assert_eq!(lines[5], "500");
    assert_eq!(lines[6], lines[7], "it leads a session of its own");
    let outcome =
        run(&mut client, shell("id -u; id -G; echo $HOME; cat; ps -o pgid= -p $$ >/dev/null")).await.unwrap();
    assert_eq!(
        outcome.text().lines().collect::<Vec<_>>(),
        ["0", "0 4242", "/root"],
        "root, with /dev/null to read"
    );
}

#[tokio::test]
async fn a_process_starts_in_the_folder_that_was_asked_for() {
    let (capsule, mut client) = Capsule::active().await;
    let home = capsule.home();
    std::fs::create_dir(capsule.folder.path().join("home/sub")).unwrap();
    for (cwd, expected) in [
        ("", home.clone()),
        ("~", home.clone()),
        ("~/sub", format!("{home}/sub")),
        ("sub", format!("{home}/sub")),
        ("/proc", "/proc".to_owned()),
    ] {
        let request = ExecRequest { cwd: cwd.to_owned(), user: "user".to_owned(), ..program("pwd", &[]) };
        assert_eq!(run(&mut client, request).await.unwrap().text(), expected, "{cwd:?}");
    }
    std::fs::create_dir(capsule.folder.path().join("home/closed")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(
        capsule.folder.path().join("home/closed"),
        std::fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    for cwd in ["/no/such/folder", "/etc/passwd", "nope", "closed"] {
        let request = ExecRequest { cwd: cwd.to_owned(), user: "user".to_owned(), ..program("pwd", &[]) };
        let status = run(&mut client, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{cwd:?}");
        assert!(status.message().starts_with("cwd:"), "{status:?}");
    }
}

#[tokio::test]
async fn input_arrives_whole_and_need_not_be_read() {
    let (_capsule, mut client) = Capsule::active().await;
    let input: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let cat = ExecRequest { stdin: Some(input.clone()), ..program("cat", &[]) };
    assert!(run(&mut client, cat).await.unwrap().stdout == input);
    let ignored = ExecRequest { stdin: Some(input), ..program("true", &[]) };
    assert_eq!(run(&mut client, ignored).await.unwrap().exited.exit_code, 0);
    let empty = ExecRequest { stdin: Some(Vec::new()), ..program("wc", &["-c"]) };
    assert_eq!(run(&mut client, empty).await.unwrap().text(), "0");
}

#[tokio::test]
async fn exit_codes_read_as_in_a_shell() {
    let (_capsule, mut client) = Capsule::active().await;
    for (request, code, signal) in [
        (shell("exit 3"), 3, 0),
        (shell("kill -TERM $$"), 143, 15),
        (shell("kill -KILL $$"), 137, 9),
        (program("no-such-program", &[]), 127, 0),
        (program("/no/such/program", &[]), 127, 0),
        (program("/etc/passwd", &[]), 126, 0),
        (program("/etc", &[]), 126, 0),
    ] {
        let outcome = run(&mut client, request.clone()).await.unwrap();
        assert_eq!((outcome.exited.exit_code, outcome.exited.signal), (code, signal), "{request:?}");
        assert_eq!(outcome.exited.error.is_empty(), code != 127 && code != 126, "{outcome:?}");
        assert!(!outcome.exited.timed_out && !outcome.exited.oom);
    }
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_by_name() {
    let (_capsule, mut client) = Capsule::active().await;
    let bad_env = HashMap::from([("A=B".to_owned(), String::new())]);
    for (request, field) in [
        (program("", &[]), "cmd:"),
        (program("a\0b", &[]), "cmd:"),
        (program("true", &["\0"]), "args:"),
        (ExecRequest { user: "nobody-here".to_owned(), ..program("true", &[]) }, "user:"),
        (ExecRequest { cwd: "/\0".to_owned(), ..program("true", &[]) }, "cwd:"),
        (ExecRequest { env: bad_env, ..program("true", &[]) }, "env:"),
    ] {
        let status = client.exec(call(request, TOKEN)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}");
        assert!(status.message().starts_with(field), "{status:?}");
    }
}
