//! Code that does its worst: floods, junk, broken streams.

use super::support::{Bed, collect, part, request};
use hearth_proto::wire::run::{RunRequest, RunStatus};
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_flood_is_cut_in_the_middle_and_never_blocks_the_kernel() {
    let Some(bed) = Bed::new() else { return };
    let limited = |code: &str| RunRequest { max_output_bytes: 10_000, ..request(code) };
    let output = bed.run(limited("for i in range(300000): print(i)")).await.ok();
    assert!(output.end.stdout_truncated && !output.end.stderr_truncated);
    assert!(output.stdout.starts_with("0\n1\n") && output.stdout.ends_with("299998\n299999\n"));
    assert!(output.stdout.len() < 10_100 && output.stdout.contains(" bytes omitted …"));
    let output = bed.run(limited("import sys\nsys.stderr.write('é' * 5_000_000); None")).await;
    assert!(output.end.stderr_truncated && !output.stderr.contains('\u{fffd}'));
    let output = bed
        .run(limited("import subprocess; subprocess.run('yes | head -c 50000000', shell=True); 'done'"))
        .await;
    assert_eq!(output.value(), "'done'");
    assert!(output.end.stdout_truncated && output.stdout.len() < 10_100);
    let whole = bed.code("print('x' * 900_000)").await.ok();
    assert_eq!((whole.stdout.len(), whole.end.stdout_truncated), (900_001, false));
}

#[tokio::test]
async fn endless_floods_end_at_the_time_limit() {
    let Some(bed) = Bed::new() else { return };
    bed.code("import os").await.ok();
    for code in ["while True: print('x' * 1000)", "os.system('yes')"] {
        let started = Instant::now();
        let output = bed.run(RunRequest { timeout_ms: 500, ..request(code) }).await;
        assert_eq!(output.status(), RunStatus::Timeout, "{code}");
        assert!(started.elapsed() < Duration::from_secs(5), "{code}: {:?}", started.elapsed());
    }
    // A background flood hurts neither this run nor the next.
    let code = "import subprocess; p = subprocess.Popen('yes'); 'started'";
    assert_eq!(bed.code(code).await.value(), "'started'");
    assert_eq!(bed.code("p.kill(); p.wait(); 'stopped'").await.value(), "'stopped'");
    assert_eq!(bed.code("1").await.ok().value(), "1");
}

#[tokio::test]
async fn an_unread_stream_does_not_hold_the_run_up() {
    let Some(bed) = Bed::new() else { return };
    let unread = bed.start(request("for i in range(200000): print(i)\nflag = 1")).await;
    assert_eq!(bed.code("flag").await.ok().value(), "1");
    assert!(collect(unread).await.ok().stdout.starts_with("0\n1\n"));
}

#[tokio::test]
async fn junk_on_the_connection_ends_the_kernel_and_nothing_else() {
    let Some(bed) = Bed::new() else { return };
    let find = "import os, stat\nfd = [n for n in range(3, 64) if os.path.exists(f'/proc/self/fd/{n}') and stat.S_ISSOCK(os.fstat(n).st_mode)][0]\n";
    for junk in [
        "os.write(fd, b'junk' * 100)",
        "os.write(fd, b'\\x02\\0\\0\\0{}')",
        "os.write(fd, b'\\xff\\xff\\xff\\x03' + b'x' * 5000)",
        "os.close(fd)",
    ] {
        let code = format!("{find}{junk}\nimport time; time.sleep(.5)");
        let output = bed.run(RunRequest { timeout_ms: 5000, ..request(&code) }).await;
        let expected =
            if junk.starts_with("os.write(fd, b'\\xff") { RunStatus::Timeout } else { RunStatus::KernelDied };
        // A frame that is announced and never comes looks like silence.
        assert!([expected, RunStatus::KernelDied].contains(&output.status()), "{junk}: {output:?}");
        let after = bed.code("1").await.ok();
        assert_eq!((after.value(), after.end.fresh_kernel), ("1", true), "{junk}");
    }
}

#[tokio::test]
async fn displays_over_the_limit_are_left_out_with_a_notice() {
    let Some(bed) = Bed::new() else { return };
    let code = "for _ in range(4): display({'text/html': 'x' * 10_000_000}, raw=True)\n'small'";
    let output = bed.code(code).await.ok();
    assert_eq!(output.results.len(), 5);
    assert_eq!(part(&output.results[2], "text/html").map(str::len), Some(10_000_000));
    assert!(part(&output.results[3], "text/plain").unwrap().contains("over the limit"));
    assert_eq!(output.value(), "'small'");
    let output = bed.code("display({'text/html': 'x' * 80_000_000}, raw=True)").await.ok();
    assert!(part(&output.results[0], "text/plain").unwrap().contains("80000"));
    let output = bed.code("raise ValueError('y' * 5_000_000)").await;
    assert!(output.error().value.len() < 1 << 20);
}

#[tokio::test]
async fn streams_can_be_abused_without_harm() {
    let Some(bed) = Bed::new() else { return };
    assert_eq!(bed.code("import sys; print('\\udc80 ok')").await.ok().stdout, "\\udc80 ok\n");
    assert_eq!(bed.code("sys.stdout.write(5)").await.error().name, "TypeError");
    assert_eq!(bed.code("sys.stdout.close(); print('still')").await.ok().stdout, "still\n");
    assert_eq!(bed.code("sys.stdout = None; sys.stderr = None").await.ok().stdout, "");
    bed.code("sys.stdout = sys.__stdout__").await;
    let through = bed.code("print('through the pipe', flush=True)").await;
    assert_eq!(through.stdout, "through the pipe\n");
    bed.rehearse().await.ok();
    assert_eq!(bed.code("class R:\n    def __repr__(self): raise ValueError('no')\nR()").await.ends, 1);
    assert_eq!(bed.code("import threading, time\nthreading.Thread(target=lambda: [print('t') for _ in range(100)]).start(); time.sleep(.2)").await.status(), RunStatus::Ok);
    assert_eq!(bed.code("import os; os.close(1); os.close(2); 5").await.value(), "5");
    assert_eq!(bed.code("6").await.value(), "6");
}

#[tokio::test]
async fn forks_without_end_stop_at_the_time_limit() {
    let Some(bed) = Bed::new() else { return };
    // Bounded, so that a failure of this test does not take the machine with it.
    let code = "import os, time\nfor _ in range(6): os.fork()\ntime.sleep(1e6)";
    let output = bed.run(RunRequest { timeout_ms: 700, ..request(code) }).await;
    assert_eq!(output.status(), RunStatus::Timeout);
    assert_eq!(bed.code("1").await.value(), "1");
}
