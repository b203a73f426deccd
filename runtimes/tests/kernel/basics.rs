//! What every user sees: text, values, errors, displays, state.

use super::support::{Bed, collect, has_module, part, request};
use futures::{FutureExt, StreamExt};
use hearth_proto::wire::run::{RunRequest, RunStatus, v1::run_event::Event};
use std::time::{Duration, Instant};

#[tokio::test]
async fn text_values_and_state_are_those_of_a_notebook() {
    let Some(bed) = Bed::new() else { return };
    let first = bed.code("print('hello')").await.ok();
    assert_eq!((first.stdout.as_str(), first.end.execution_count), ("hello\n", 1));
    assert!(!first.end.fresh_kernel && first.end.run_us > 0);
    assert_eq!(bed.code("x = 20\nx + 1").await.ok().value(), "21");
    assert_eq!(bed.code("_ * 2").await.ok().value(), "42");
    assert_eq!(bed.code("In[2], Out[2], _i2").await.ok().value(), r"('x = 20\nx + 1', 21, 'x = 20\nx + 1')");
    assert!(bed.code("x;").await.ok().results.is_empty());
    assert_eq!(bed.code("").await.ok().end.execution_count, 5);
    let quiet = bed.code("import sys; print('é漢🙂', end=''); sys.stderr.write('err')\nNone").await;
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("é漢🙂", "err"));
    assert!(quiet.results.is_empty());
}

#[tokio::test]
async fn errors_have_name_value_and_a_plain_traceback_and_the_kernel_goes_on() {
    let Some(bed) = Bed::new() else { return };
    let failed = bed.code("print('before')\ndef f():\n    return 1/0\nf()").await;
    assert_eq!((failed.status(), failed.stdout.as_str()), (RunStatus::Error, "before\n"));
    let error = failed.error();
    assert_eq!((error.name.as_str(), error.value.as_str()), ("ZeroDivisionError", "division by zero"));
    let traceback = error.traceback.join("\n");
    assert!(traceback.contains("Cell In[1], line 4") && traceback.contains("return 1/0"), "{traceback}");
    assert!(!traceback.contains('\x1b') && !traceback.contains("hearth"), "{traceback}");
    assert_eq!(bed.code("def (").await.error().name, "SyntaxError");
    let exit = bed.code("import sys; sys.exit(3)").await;
    assert_eq!((exit.status(), exit.error().name.as_str()), (RunStatus::Error, "SystemExit"));
    assert_eq!((exit.error().value.as_str(), exit.stderr.as_str()), ("3", ""));
    assert_eq!(bed.code("exit()").await.error().name, "SystemExit");
    assert_eq!(bed.code("raise ExceptionGroup('g', [ValueError(1)])").await.error().name, "ExceptionGroup");
    let after = bed.code("f.__name__").await.ok();
    assert_eq!(after.value(), "'f'");
    assert!(!after.end.fresh_kernel);
}

#[tokio::test]
async fn ipython_is_all_there() {
    let Some(bed) = Bed::new() else { return };
    assert!(bed.code("%timeit -n1 -r1 1").await.ok().stdout.contains("per loop"));
    assert_eq!(bed.code("%%bash\necho one\necho two").await.ok().stdout, "one\ntwo\n");
    assert_eq!(bed.code("!echo from the shell").await.ok().stdout, "from the shell\n");
    assert_eq!(bed.code("lines = !printf 'a\\nb'\nlines").await.ok().value(), "['a', 'b']");
    assert_eq!(bed.code("import asyncio\nawait asyncio.sleep(0, 'slept')").await.ok().value(), "'slept'");
    assert_eq!(bed.code("t = asyncio.create_task(asyncio.sleep(0, 7))").await.ok().stdout, "");
    assert_eq!(bed.code("await t").await.ok().value(), "7");
    assert!(bed.code("len?").await.ok().stdout.contains("Return the number of items"));
    assert_eq!(bed.code("%cd /").await.ok().stdout, "/\n");
    assert_eq!(bed.code("import os; os.getcwd()").await.ok().value(), "'/'");
    assert_eq!(bed.code("%matplotlib inline").await.ok().stdout, "");
    let inner = bed.code("get_ipython().run_cell('1/0'); 'outer'").await;
    assert_eq!((inner.status(), inner.value(), inner.errors.len()), (RunStatus::Ok, "'outer'", 1));
    let shown = bed.code("display({'a': 1}); from IPython.display import HTML; HTML('<b>x</b>')").await.ok();
    assert_eq!(part(&shown.results[0], "text/plain"), Some("{'a': 1}"));
    assert_eq!(part(&shown.results[1], "text/html"), Some("<b>x</b>"));
    assert!(!shown.results[0].is_main && shown.results[1].is_main);
    let odd = bed
        .code("display({'application/json': {'n': float('nan')}, 'image/png': b'\\x89'}, raw=True)")
        .await
        .ok();
    assert_eq!(part(&odd.results[0], "application/json"), Some(r#"{"n":"nan"}"#));
    assert_eq!(part(&odd.results[0], "image/png"), Some("iQ=="));
}

#[tokio::test]
async fn plots_and_tables_are_displayed() {
    let Some(bed) = Bed::new() else { return };
    assert!(
        has_module("matplotlib") && has_module("pandas"),
        "install matplotlib and pandas for these tests"
    );
    bed.runtimes.warm("python").await.unwrap();
    let plot = bed.code("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]); print('drawn')").await.ok();
    assert_eq!((plot.results.len(), plot.stdout.as_str()), (1, "drawn\n"));
    assert!(part(&plot.results[0], "image/png").unwrap().starts_with("iVBORw0KGgo"));
    assert_eq!(bed.code("plt.get_fignums()").await.ok().value(), "[]");
    let table = bed.code("import pandas as pd; pd.DataFrame({'a': [1, 2]})").await.ok();
    assert!(part(&table.results[0], "text/html").unwrap().contains("<table"));
    assert_eq!(part(&table.results[0], "text/plain"), Some("   a\n0  1\n1  2"));
}

#[tokio::test]
async fn subprocesses_and_forks_are_heard() {
    let Some(bed) = Bed::new() else { return };
    let code = "import os, subprocess\nprint('a')\nos.system('echo b')\nsubprocess.run(['echo', 'c'])\n\
                os.system('echo d >&2')\nprint('e', end='')";
    let output = bed.code(code).await;
    for line in ["a\n", "b\n", "c\n", "e"] {
        assert!(output.stdout.contains(line), "{output:?}");
    }
    assert!(output.stdout.find("a\n") < output.stdout.find("b\n"), "{output:?}");
    assert_eq!(output.stderr, "d\n");
    let code = "pid = os.fork()\nif pid == 0:\n    print('child')\nelse:\n    os.waitpid(pid, 0)\n    print('parent')";
    let output = bed.code(code).await;
    assert!(output.stdout.contains("child\n") && output.stdout.contains("parent\n"), "{output:?}");
    let code = "from multiprocessing import get_context\ndef g(q): print('worker'); q.put(5)\n\
                c = get_context('fork'); q = c.Queue(); p = c.Process(target=g, args=(q,)); p.start(); v = q.get(); p.join(); v";
    let output = bed.code(code).await;
    assert_eq!((output.value(), output.stdout.as_str()), ("5", "worker\n"));
    assert_eq!(
        bed.code("sys = __import__('sys'); sys.stdout.buffer.write(b'\\xff\\xfe'); None")
            .await
            .stdout
            .chars()
            .count(),
        2
    );
}

#[tokio::test]
async fn long_cells_deliver_their_text_as_it_comes() {
    let Some(bed) = Bed::new() else { return };
    bed.code("import time, threading").await.ok();
    let mut stream = bed.start(request("print('now'); time.sleep(1.5); print('later')")).await;
    let started = Instant::now();
    let event = stream.next().await.unwrap().event.unwrap();
    assert!(matches!(&event, Event::Stdout(chunk) if chunk.data == b"now\n"), "{event:?}");
    assert!(started.elapsed() < Duration::from_millis(800), "{:?}", started.elapsed());
    assert_eq!(collect(stream).await.stdout, "later\n");
    let code = "for i in range(5):\n    print(i, 'x' * 20000); time.sleep(.04)\nprint('end')";
    let output = bed.code(code).await.ok();
    assert_eq!(output.stdout.lines().count(), 6);
    assert_eq!(output.stdout.len(), 5 * 20003 + 4);
}

#[tokio::test]
async fn runs_of_a_context_queue_up_in_order() {
    let Some(bed) = Bed::new() else { return };
    let mut streams = vec![bed.start(request("import time; seen = []; time.sleep(.2)")).await];
    for index in 0..5 {
        streams.push(bed.start(request(&format!("seen.append({index}); list(seen)"))).await);
    }
    let outputs = futures::future::join_all(streams.into_iter().map(collect)).await;
    assert_eq!(outputs[5].value(), "[0, 1, 2, 3, 4]");
    assert_eq!(
        outputs.iter().map(|output| output.end.execution_count).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6]
    );
}

#[tokio::test]
async fn wrong_requests_are_refused_at_once() {
    let Some(bed) = Bed::new() else { return };
    let refused =
        |request: RunRequest| bed.runtimes.execute(request).now_or_never().unwrap().unwrap_err().to_string();
    assert_eq!(refused(RunRequest { language: "cobol".into(), ..request("1") }), "unknown language `cobol`");
    assert_eq!(refused(RunRequest { context_id: "none".into(), ..request("1") }), "unknown context `none`");
    assert!(refused(RunRequest { timeout_ms: 0, ..request("1") }).starts_with("timeout_ms: "));
}

#[tokio::test]
async fn what_a_cell_imports_from_the_future_holds_for_later_cells() {
    let Some(bed) = Bed::new() else { return };
    bed.code("from __future__ import annotations").await.ok();
    let code = "def f(x: nowhere): pass\nf.__annotations__";
    assert_eq!(bed.code(code).await.ok().value(), "{'x': 'nowhere'}");
}
