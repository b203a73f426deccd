//! What warming, rehearsing and reseeding must and must not leave behind.

use super::support::{Bed, has_module};

/// Everything user code can compare between two kernels, as text.
const SURVEY: &str = r"
import sys, os, builtins, linecache, gc
_ip = get_ipython()
state = dict(
    names=sorted((k, type(v).__name__) for k, v in globals().items() if k not in ('_ip', 'state')),
    inputs=len(In), outputs=dict(Out), unders=(_, __, ___, _i, _ii, _iii), history=len(_ip.history_manager.input_hist_raw),
    last=sorted(n for n in dir(sys) if n.startswith('last_')), cwd=os.getcwd(), dh=len(_dh),
    files=sorted(os.listdir()), cells=[k for k in linecache.cache if 'ipython-input' in k],
    hidden=sorted(_ip.user_ns_hidden), builtins=sorted(n for n in dir(builtins) if not n.startswith('__pybind11_')), magics=len(_ip.magics_manager.magics['line']),
    handlers={k: len(v) for k, v in _ip.events.callbacks.items() if 'Hook' not in k and k != 'post_execute'},
    env=sorted(k for k in os.environ), argv=sys.argv, path0=sys.path[0], main=sys.modules['__main__'] is not None,
)
print(state)
";

#[tokio::test]
async fn warming_and_rehearsing_leave_no_trace() {
    let Some(plain) = Bed::new() else { return };
    let Some(warmed) = Bed::new() else { return };
    warmed.runtimes.warm("python").await.unwrap();
    warmed.runtimes.reseed().await.unwrap();
    for _ in 0..3 {
        warmed.rehearse().await.ok();
    }
    let survey = |text: String, bed: &Bed| text.replace(&bed.home.path().display().to_string(), "HOME");
    // Imported by a plain survey as well: folders that matplotlib makes at its first import.
    let (a, b) = (plain.code(SURVEY).await.ok(), warmed.code(SURVEY).await.ok());
    let (a_text, b_text) = (survey(a.stdout, &plain), survey(b.stdout, &warmed));
    let hidden = |text: &str| text.replace("'.cache', ", "").replace("'.config', ", "");
    assert_eq!(hidden(&a_text), hidden(&b_text));
    assert_eq!((a.end.execution_count, b.end.execution_count), (1, 1));
    let state = "_1 = 1\nx = 5\n'value'";
    for bed in [&plain, &warmed] {
        bed.code(state).await.ok();
        bed.code("1/0").await;
    }
    warmed.rehearse().await.ok();
    for code in [SURVEY, "_, x, In[-2], Out", "_2, _i, sys.last_type"] {
        let (a, b) = (plain.code(code).await.ok(), warmed.code(code).await.ok());
        assert_eq!(hidden(&survey(a.stdout, &plain)), hidden(&survey(b.stdout, &warmed)));
        let values = |results: &[hearth_proto::wire::run::Result]| format!("{results:?}");
        assert_eq!(values(&a.results), values(&b.results));
    }
}

#[tokio::test]
async fn warming_loads_what_is_slow_to_load() {
    let Some(bed) = Bed::new() else { return };
    bed.runtimes.warm("python").await.unwrap();
    for module in ["numpy", "pandas", "matplotlib.pyplot", "asyncio"] {
        let loaded = bed.code(&format!("import sys; '{module}' in sys.modules")).await.ok();
        assert_eq!(loaded.value() == "True", has_module(module), "{module}");
    }
}

#[tokio::test]
async fn a_rehearsal_does_not_move_random_state_or_run_hooks() {
    let Some(bed) = Bed::new() else { return };
    bed.code("import random; random.seed(1); random.random(); calls = []").await.ok();
    bed.code("get_ipython().events.register('post_run_cell', lambda r: calls.append(1))").await.ok();
    let before = bed.code("random.getstate(), len(calls)").await.ok().value().to_owned();
    bed.rehearse().await.ok();
    let after = bed.code("random.getstate(), len(calls) - 1").await.ok();
    assert_eq!(after.value(), before);
}

#[tokio::test]
async fn kernels_in_the_same_state_differ_after_a_reseed_and_only_then() {
    assert!(Bed::new().is_none() || has_module("numpy"), "install numpy for these tests");
    let draw =
        "import random, numpy; (random.random(), float(numpy.random.rand()), float(numpy.random.randn()))";
    let same = "import random, numpy, tempfile, uuid, ssl; random.seed(0); numpy.random.seed(0); numpy.random.randn()";
    let mut drawn = Vec::new();
    for reseed in [false, false, true, true] {
        let Some(bed) = Bed::new() else { return };
        bed.code(same).await.ok();
        if reseed {
            bed.runtimes.reseed().await.unwrap();
        }
        let text = bed.code(draw).await.ok().value().to_owned();
        drawn.push(text.split(", ").map(str::to_owned).collect::<Vec<_>>());
    }
    assert_eq!(drawn[0], drawn[1], "the kernels are in the same state");
    for index in 0..3 {
        let draws = [&drawn[0][index], &drawn[2][index], &drawn[3][index]];
        assert!(draws[0] != draws[1] && draws[1] != draws[2] && draws[0] != draws[2], "{index}: {drawn:?}");
    }
}

#[tokio::test]
async fn another_generator_of_numpys_is_reseeded_too() {
    let Some(bed) = Bed::new() else { return };
    let other =
        "import numpy; numpy.random.set_bit_generator(numpy.random.PCG64(1)); float(numpy.random.rand())";
    let first = bed.code(other).await.ok().value().to_owned();
    bed.code("numpy.random.set_bit_generator(numpy.random.PCG64(1))").await.ok();
    bed.runtimes.reseed().await.unwrap();
    let second = bed.code("float(numpy.random.rand())").await.ok();
    assert_ne!(second.value(), first);
    assert!(!second.end.fresh_kernel);
    assert_eq!(bed.code("type(numpy.random.get_bit_generator()).__name__").await.ok().value(), "'PCG64'");
}

#[tokio::test]
async fn a_kernel_that_cannot_confirm_a_reseed_is_replaced() {
    let Some(bed) = Bed::new() else { return };
    bed.code("import random; kept = 1").await.ok();
    bed.code("def bad(*a): raise RuntimeError('no')\nrandom.seed = bad").await.ok();
    bed.runtimes.reseed().await.unwrap();
    let after = bed.code("'kept' in globals()").await.ok();
    assert_eq!((after.value(), after.end.fresh_kernel), ("False", true));
}
