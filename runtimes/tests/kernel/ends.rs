//! How runs end that do not end by themselves.

use super::support::{Bed, collect, request};
use futures::StreamExt;
use hearth_proto::wire::run::{RunRequest, RunStatus, v1::run_event::Event};
use std::time::{Duration, Instant};

fn limited(code: &str, timeout_ms: u64) -> RunRequest {
    RunRequest { timeout_ms, ..request(code) }
}

#[tokio::test]
async fn a_run_over_its_time_is_interrupted_and_its_context_stays() {
    let Some(bed) = Bed::new() else { return };
    bed.code("import time; kept = 1").await.ok();
    for code in ["print('start')\nwhile True: pass", "print('start')\ntime.sleep(1e6)"] {
        let started = Instant::now();
        let output = bed.run(limited(code, 300)).await;
        assert_eq!((output.status(), output.stdout.as_str()), (RunStatus::Timeout, "start\n"));
        assert!(started.elapsed() < Duration::from_secs(2));
        let error = output.error();
        assert_eq!(
            (error.name.as_str(), error.value.as_str()),
            ("TimeoutError", "the run took longer than 300 ms")
        );
        assert!(error.traceback.join("\n").contains("line 2"), "{error:?}");
    }
    let after = bed.code("kept").await.ok();
    assert!(after.value() == "1" && !after.end.fresh_kernel);
}

#[tokio::test]
async fn a_failed_cell_inside_a_cell_does_not_shield_it_from_the_interrupt() {
    let Some(bed) = Bed::new() else { return };
    let output = bed.run(limited("get_ipython().run_cell('1/0')\nwhile True: x = 1", 1500)).await;
    assert_eq!(output.status(), RunStatus::Timeout);
    assert!(!bed.code("x").await.ok().end.fresh_kernel);
}

#[tokio::test]
async fn an_interrupted_await_does_not_go_on_later() {
    let Some(bed) = Bed::new() else { return };
    bed.code("import asyncio; late = []").await.ok();
    let output = bed.run(limited("await asyncio.sleep(1)\nlate.append(1)", 300)).await;
    assert_eq!(output.status(), RunStatus::Timeout);
    assert_eq!(bed.code("await asyncio.sleep(1.2); late").await.ok().value(), "[]");
}

#[tokio::test]
async fn code_that_ignores_the_interrupt_is_killed_with_its_processes() {
    let Some(bed) = Bed::new() else { return };
    let pid = bed.code("import subprocess; p = subprocess.Popen(['sleep', '1000']); p.pid").await.ok();
    let code = "import time\nwhile True:\n    try: time.sleep(9)\n    except KeyboardInterrupt: print('no')";
    let output = bed.run(limited(code, 300)).await;
    assert_eq!((output.status(), output.stdout.as_str()), (RunStatus::Timeout, "no\n"));
    assert!(output.error().value.contains("replaced"));
    let gone = format!("/proc/{}/stat", pid.value());
    let state = std::fs::read_to_string(gone).ok();
    assert!(state.is_none_or(|state| state.contains(") Z ")), "the subprocess lives on");
    let after = bed.code("'p' in globals()").await.ok();
    assert_eq!((after.value(), after.end.fresh_kernel, after.end.execution_count), ("False", true, 1));
    assert!(!bed.code("1").await.ok().end.fresh_kernel);
}

#[tokio::test]
async fn a_kernel_that_exits_is_reported_with_what_it_said_before() {
    let Some(bed) = Bed::new() else { return };
    let output = bed.code("import os; print('last words'); os._exit(7)").await;
    assert_eq!((output.status(), output.stdout.as_str()), (RunStatus::KernelDied, "last words\n"));
    assert_eq!(output.error().name, "KernelDied");
    assert!(output.error().value.contains("exited with status 7"), "{:?}", output.error());
    let output = bed.code("import os, signal; print(1); os.kill(os.getpid(), signal.SIGKILL)").await;
    assert_eq!((output.status(), output.end.fresh_kernel), (RunStatus::KernelDied, true));
    assert!(output.error().value.contains("SIGKILL"));
    let output = bed.code("import ctypes; ctypes.string_at(0)").await;
    assert!(output.error().value.contains("SIGSEGV"), "{:?}", output.error());
    assert!(bed.code("1").await.ok().end.fresh_kernel);
}

#[tokio::test]
async fn a_kernel_that_dies_between_runs_is_replaced() {
    let Some(bed) = Bed::new() else { return };
    bed.code("import os, threading; threading.Timer(.2, os._exit, (1,)).start()").await.ok();
    tokio::time::sleep(Duration::from_millis(800)).await;
    let after = bed.code("2").await.ok();
    assert!(after.value() == "2" && after.end.fresh_kernel);
}

#[tokio::test]
async fn dropping_the_stream_interrupts_the_run() {
    let Some(bed) = Bed::new() else { return };
    bed.code("import time; log = []").await.ok();
    let code =
        "print('go')\ntry:\n    time.sleep(1e6)\nexcept KeyboardInterrupt:\n    log.append('interrupted')";
    let mut stream = bed.start(request(code)).await;
    let event = stream.next().await.unwrap().event.unwrap();
    assert!(matches!(event, Event::Stdout(_)));
    drop(stream);
    assert_eq!(bed.code("log").await.ok().value(), "['interrupted']");
    // One that waits is never started.
    let busy = bed.start(request("time.sleep(.3)")).await;
    drop(bed.start(request("log.append('never')")).await);
    collect(busy).await.ok();
    assert_eq!(bed.code("log").await.ok().value(), "['interrupted']");
}

#[tokio::test]
async fn an_idle_kernel_ignores_interrupts() {
    let Some(bed) = Bed::new() else { return };
    let pid: i32 = bed.code("import os; os.getpid()").await.ok().value().parse().unwrap();
    for _ in 0..3 {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT).unwrap();
    }
    let after = bed.code("os.getpid()").await.ok();
    assert_eq!(after.value(), pid.to_string());
}
