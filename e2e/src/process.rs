//! A `hearth` process of a test: its log is kept, its end is waited for.

use anyhow::{Context, bail};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// The program under test: beside the test's own build, or `HEARTH_BIN`.
pub fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("HEARTH_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    // target/release/deps/test-… → target/release/hearth
    let path = test.parent().and_then(Path::parent).context("the test's folder")?.join("hearth");
    if !path.exists() {
        bail!("{} is not built: run `make build`", path.display());
    }
    Ok(path)
}

/// A running role of Hearth.
pub struct Hearth {
    child: Child,
    log: PathBuf,
    dir: PathBuf,
}

impl Hearth {
    /// Starts `hearth ARGS…` with the data folder `dir`; output goes to a log in it.
    pub fn start(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = dir.join(format!("{}-{number}.log", args.first().unwrap_or(&"hearth")));
        let file = File::create(&log)?;
        // Another program than the others' of the test: an upgrade.
        let other = env.iter().find(|(name, _)| *name == "HEARTH_BIN").map(|(_, path)| PathBuf::from(path));
        let program = other.map_or_else(program, Ok)?;
        let child = Command::new(program)
            .args(args)
            .env("HEARTH_DIR", dir)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self { child, log, dir: dir.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> anyhow::Result<()> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal)?;
        Ok(())
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        until(deadline, "the process to end", || Ok(self.child.try_wait()?))
    }

    /// SIGKILL and wait.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM and wait for a clean end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(nix::sys::signal::Signal::SIGTERM)?;
        let status = self.wait(Duration::from_secs(60))?;
        if !status.success() {
            bail!("ended with {status}; its log:\n{}", self.log());
        }
        Ok(())
    }
}

impl Drop for Hearth {
    fn drop(&mut self) {
        if !self.has_ended() {
            // A test that failed half way; what it started must not stay.
            let _ = self.child.kill();
            let _ = self.child.wait();
            // Nor may its capsules, mount and database; the test has failed already and says why.
            if let Ok(program) = program() {
                let _ =
                    Command::new(program).args(["down", "--destroy"]).env("HEARTH_DIR", &self.dir).output();
            }
        }
        if std::thread::panicking() {
            eprintln!("---- log of hearth ----\n{}", self.log());
        }
    }
}

/// Asks again until there is an answer. For conditions that nothing announces.
pub fn until<T>(
    deadline: Duration,
    what: &str,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if deadline < start.elapsed() {
            bail!("waited {} s for {what}", deadline.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
