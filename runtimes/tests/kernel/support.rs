//! A bed for tests: a home folder, the runtimes, and what a run put out, sorted.

use futures::StreamExt;
use hearth_proto::wire::run::{
    Artifact, End, Result as Display, RunError, RunRequest, RunStatus, v1::run_event::Event,
};
use hearth_runtimes::{Config, RunStream, Runtimes, User};
use std::{path::PathBuf, process::Command, sync::OnceLock, time::Duration};

/// The interpreter, or `None` if these tests are to be skipped.
fn python() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let python = std::env::var("HEARTH_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let probe = "import sys, IPython; print(sys.executable)";
        let output = Command::new(&python).args(["-c", probe]).output();
        let found = output.ok().filter(|output| output.status.success());
        let found = found?;
        Some(String::from_utf8_lossy(&found.stdout).trim().into())
    };
    FOUND.get_or_init(find).clone()
}

/// For tests without an interpreter: fails, or says that they are skipped.
fn lacks_python() {
    hearth_test_skip::lacks(
        "python",
        "HEARTH_TEST_PYTHON (or python3) cannot import IPython; `./setup --test` makes one that can",
    );
}

/// Is this module importable in the kernels' Python?
pub fn has_module(name: &str) -> bool {
    python().is_some_and(|python| {
        let output = Command::new(python).args(["-c", &format!("import {name}")]).output();
        output.is_ok_and(|output| output.status.success())
    })
}

/// The runtimes with a home of their own.
pub struct Bed {
    pub runtimes: Runtimes,
    pub home: tempfile::TempDir,
    _run: tempfile::TempDir,
}

/// What a run put out.
#[derive(Debug, Default)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub results: Vec<Display>,
    pub errors: Vec<RunError>,
    pub artifacts: Vec<Artifact>,
    pub end: End,
    /// How often `End` came, and what came after it.
    pub ends: usize,
}

impl Bed {
    /// A bed, or `None` to skip.
    pub fn new() -> Option<Self> {
        Self::with(|_| {})
    }

    /// A bed with another configuration.
    pub fn with(change: impl FnOnce(&mut Config)) -> Option<Self> {
        let Some(python) = python() else {
            lacks_python();
            return None;
        };
        let home = tempfile::tempdir().expect("a folder");
        let run = tempfile::tempdir().expect("a folder");
        let user = User {
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            name: "tester".into(),
            home: home.path().into(),
            groups: vec![],
        };
        let mut config = Config::new(run.path());
        config.user = nix::unistd::getuid().is_root().then_some(user);
        config.python = python;
        change(&mut config);
        Some(Self { runtimes: Runtimes::new(config), home, _run: run })
    }

    pub async fn start(&self, request: RunRequest) -> RunStream {
        self.runtimes.execute(request).await.expect("an accepted request")
    }

    /// Runs to the end.
    pub async fn run(&self, request: RunRequest) -> Output {
        collect(self.start(request).await).await
    }

    /// Runs the language's own cells, without a trace.
    pub async fn rehearse(&self) -> Output {
        self.run(rehearsal()).await
    }

    /// Runs code with a generous time limit.
    pub async fn code(&self, code: &str) -> Output {
        self.run(request(code)).await
    }
}

pub fn rehearsal() -> RunRequest {
    RunRequest { rehearsal: true, artifacts: true, ..request("") }
}

pub fn request(code: &str) -> RunRequest {
    RunRequest { code: code.into(), timeout_ms: 60_000, ..RunRequest::default() }
}

/// Everything of a run. No test's run takes longer than the time limit here.
pub async fn collect(mut stream: RunStream) -> Output {
    let mut output = Output::default();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let all = async {
        while let Some(event) = stream.next().await {
            match event.event.expect("an event") {
                Event::Stdout(chunk) => stdout.extend(chunk.data),
                Event::Stderr(chunk) => stderr.extend(chunk.data),
                Event::Result(display) => output.results.push(display),
                Event::Error(error) => output.errors.push(error),
                Event::Artifact(artifact) => output.artifacts.push(artifact),
                Event::End(end) => {
                    output.end = end;
                    output.ends += 1;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("the run never ended");
    assert_eq!(output.ends, 1, "one end");
    output.stdout = String::from_utf8_lossy(&stdout).into_owned();
    output.stderr = String::from_utf8_lossy(&stderr).into_owned();
    output
}

impl Output {
    pub fn status(&self) -> RunStatus {
        self.end.status()
    }

    /// The text of the cell's value.
    pub fn value(&self) -> &str {
        let main: Vec<_> = self.results.iter().filter(|result| result.is_main).collect();
        assert_eq!(main.len(), 1, "one value: {self:?}");
        part(main[0], "text/plain").expect("text")
    }

    /// The only error.
    pub fn error(&self) -> &RunError {
        assert_eq!(self.errors.len(), 1, "one error: {self:?}");
        &self.errors[0]
    }

    /// It went well and said nothing on stderr.
    pub fn ok(self) -> Self {
        assert_eq!(self.status(), RunStatus::Ok, "{self:?}");
        assert_eq!(self.stderr, "", "{self:?}");
        self
    }
}

pub fn part<'a>(display: &'a Display, mime: &str) -> Option<&'a str> {
    display.parts.iter().find(|part| part.mime == mime).map(|part| part.data.as_str())
}
