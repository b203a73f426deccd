//! What a run can ask for: environment, directory, input, files, artifacts.

use super::support::{Bed, request};
use hearth_proto::wire::run::{FileInput, RunRequest, RunStatus};
use std::collections::HashMap;

fn env(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|&(name, value)| (name.into(), value.into())).collect()
}

#[tokio::test]
async fn environment_and_directory_hold_for_one_run() {
    let Some(bed) = Bed::new() else { return };
    let show = "import os; os.environ.get('A'), os.environ.get('B'), os.getcwd()";
    let home = std::fs::canonicalize(bed.home.path()).unwrap();
    let home = if nix::unistd::getuid().is_root() {
        home.display().to_string()
    } else {
        std::env::var("HOME").unwrap()
    };
    bed.runtimes.set_env(env(&[("A", "default"), ("B", "default")]));
    let asked = RunRequest { env: env(&[("A", "run")]), cwd: "/".into(), ..request(show) };
    assert_eq!(bed.run(asked).await.ok().value(), "('run', 'default', '/')");
    assert_eq!(bed.code(show).await.ok().value(), format!("('default', 'default', '{home}')"));
    let failing = RunRequest { env: env(&[("A", "run")]), cwd: "/".into(), ..request("1/0") };
    assert_eq!(bed.run(failing).await.status(), RunStatus::Error);
    assert_eq!(bed.code(show).await.ok().value(), format!("('default', 'default', '{home}')"));
    bed.runtimes.set_env(env(&[("B", "other")]));
    assert_eq!(bed.code(show).await.ok().value(), format!("(None, 'other', '{home}')"));
    // Without a directory of its own, a run may move the context.
    bed.code("os.chdir('/tmp')").await.ok();
    assert_eq!(bed.code("os.getcwd()").await.ok().value(), "'/tmp'");
    assert_eq!(bed.code("import subprocess; subprocess.getoutput('echo $B')").await.ok().value(), "'other'");
    // What cannot be set is this run's error, and only this run's.
    bed.code("real = os.chdir; os.chdir = lambda path: 1/0").await.ok();
    let refused = RunRequest { env: env(&[("A", "run")]), cwd: "/".into(), ..request("print('never')") };
    let refused = bed.run(refused).await;
    assert_eq!((refused.error().name.as_str(), refused.stdout.as_str()), ("ZeroDivisionError", ""));
    assert_eq!(
        bed.code("os.chdir = real; os.environ.get('A'), os.getcwd()").await.ok().value(),
        "(None, '/tmp')"
    );
    let nowhere = bed.run(RunRequest { cwd: "/no/where".into(), ..request("1") }).await;
    assert_eq!((nowhere.status(), nowhere.error().name.as_str()), (RunStatus::Error, "NotADirectoryError"));
}

#[tokio::test]
async fn input_reads_what_was_given_and_never_waits() {
    let Some(bed) = Bed::new() else { return };
    let none = bed.code("input('name? ')").await;
    assert_eq!((none.status(), none.error().name.as_str()), (RunStatus::Error, "StdinNotImplementedError"));
    assert_eq!(bed.code("import sys; sys.stdin.read()").await.ok().value(), "''");
    let given = |code: &str| RunRequest { stdin: Some("één\ntwo\nthree\n".into()), ..request(code) };
    let output =
        bed.run(given("a = input('name? '); b = sys.stdin.readline(); a, b, [*sys.stdin]")).await.ok();
    assert_eq!((output.stdout.as_str(), output.value()), ("name? ", r"('één', 'two\n', ['three\n'])"));
    assert_eq!(bed.run(given("for _ in range(3): input()\ninput()")).await.error().name, "EOFError");
    assert_eq!(bed.run(given("!head -1")).await.ok().stdout, "één\n");
    let empty = RunRequest { stdin: Some(vec![]), ..request("input()") };
    assert_eq!(bed.run(empty).await.error().name, "EOFError");
    assert_eq!(bed.code("input()").await.error().name, "StdinNotImplementedError");
}

#[tokio::test]
async fn files_are_there_before_and_artifacts_are_reported_after() {
    let Some(bed) = Bed::new() else { return };
    let file = |path: &str, content: &[u8]| FileInput { path: path.into(), content: content.into() };
    let folder = tempfile::tempdir().unwrap();
    let asked = RunRequest {
        cwd: folder.path().display().to_string(),
        files: vec![file("in/data.csv", b"a,b\n1,2\n"), file("same.txt", b"same")],
        artifacts: true,
        ..request(
            "t = open('in/data.csv').read(); open('out.txt', 'w').write(t.upper()); open('in/data.csv', 'a').write('x'); t",
        )
    };
    let output = bed.run(asked).await.ok();
    assert_eq!(output.value(), r"'a,b\n1,2\n'");
    let found: Vec<_> =
        output.artifacts.iter().map(|a| (a.path.as_str(), a.size, a.content.as_deref())).collect();
    assert_eq!(found, [("in/data.csv", 9, Some(&b"a,b\n1,2\nx"[..])), ("out.txt", 8, Some(b"A,B\n1,2\n"))]);
    let refused = RunRequest { files: vec![file("/proc/nothing/x", b"")], ..request("1") };
    let refused = bed.run(refused).await;
    assert_eq!((refused.status(), refused.error().name.as_str()), (RunStatus::Error, "OSError"));
    assert!(refused.error().value.starts_with("cannot write /proc/nothing/x"));
}
