//! The `hearth up` that is measured: a child process with a data folder of its own, always stopped, leaving nothing.

use crate::{client::Client, progress::Progress};
use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A first template build takes half a minute under software emulation, several on a busy machine.
const READY_DEADLINE: Duration = Duration::from_secs(600);
/// Capsules, VMMs and the private database are ended in a few seconds; a busy machine may need longer.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest data folder: the paths of sockets below it are short.
const DIR_BYTES_MAX: usize = 50;
/// Lines of the log that an error shows.
const LOG_LINES: usize = 15;
/// Settings that would change what is measured, or point it at somebody's data.
const CLEARED: [&str; 6] = [
    "DATABASE_URL",
    "HEARTH_PARKED",
    "HEARTH_POOL_TARGET",
    "HEARTH_POOL_RESTORES",
    "HEARTH_POOL_TEMPLATE",
    "HEARTH_LOG",
];

/// A running Hearth. Dropping it stops it.
#[derive(Debug)]
pub struct Service {
    child: Child,
    program: PathBuf,
    dir: PathBuf,
    ended: bool,
}

impl Service {
    /// Starts `hearth up`. `dir` must not exist, or be empty: it is removed at the end.
    pub fn start(dir: &Path, cache: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("hearth");
        if !program.exists() {
            bail!("{} is not there: run `make build`", program.display());
        }
        if !dir.is_absolute() || DIR_BYTES_MAX < dir.as_os_str().len() {
            bail!("--dir {}: an absolute path of at most {DIR_BYTES_MAX} bytes is needed", dir.display());
        }
        fs::create_dir_all(dir).with_context(|| format!("the data folder {}", dir.display()))?;
        if fs::read_dir(dir)?.next().is_some() {
            bail!("--dir {} is not empty: it would be removed at the end", dir.display());
        }
        let mut command = Command::new(&program);
        for name in CLEARED {
            command.env_remove(name);
        }
        let child = command
            .arg("up")
            .env("HEARTH_DIR", dir)
            .env("HEARTH_ON_STOP", "destroy")
            .env("HEARTH_CACHE", cache)
            .env("HEARTH_LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(File::create(dir.join("up.out"))?)
            .stderr(File::create(dir.join("up.log"))?)
            // A terminal's Ctrl-C is ours: we stop it in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child, program, dir: dir.to_owned(), ended: false })
    }

    /// The data folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until it says where it listens and that runs can be served.
    pub async fn ready(&mut self, progress: &Progress) -> anyhow::Result<Client> {
        let start = Instant::now();
        let phase = progress.phase("starting hearth up", 0);
        let mut client: Option<Client> = None;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.ended = true;
                bail!("hearth up ended with {status}; its log ends:\n{}", self.log());
            }
            match &client {
                None => client = self.announced()?,
                Some(ready) => match ready.get("/ready").await {
                    Ok(_) => break,
                    Err(error) => phase.message(&error.to_string()),
                },
            }
            if READY_DEADLINE < start.elapsed() {
                bail!("not ready after {} s; its log ends:\n{}", READY_DEADLINE.as_secs(), self.log());
            }
            tokio::time::sleep(PAUSE).await;
        }
        drop(phase);
        progress.line(format!("ready after {:.1} s", start.elapsed().as_secs_f64()));
        client.context("hearth up did not say its URL")
    }

    /// A client, once the URL is printed and the key's file is there.
    fn announced(&self) -> anyhow::Result<Option<Client>> {
        let text = fs::read_to_string(self.dir.join("up.out"))?;
        let url = text.lines().find_map(|line| line.trim_start().strip_prefix("URL"));
        let (Some(url), Ok(key)) = (url, fs::read_to_string(self.dir.join("api-key"))) else {
            return Ok(None);
        };
        Client::new(url.trim(), key.trim().to_owned()).map(Some)
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("up.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// SIGTERM, wait for its end, remove its folder. Our own connections close meanwhile: it waits for them.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        tokio::task::spawn_blocking(move || self.end()).await.context("stopping hearth up")?
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let clean = if self.ended { self.child.try_wait()? } else { self.terminate()? };
        self.ended = true;
        if clean.is_none_or(|status| !status.success()) {
            // It may have left VMMs and a mount.
            let swept = Command::new(&self.program)
                .args(["down", "--destroy"])
                .env("HEARTH_DIR", &self.dir)
                .status()?;
            let log = self.log();
            fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))?;
            bail!("hearth up did not stop cleanly ({clean:?}; hearth down: {swept}); its log ends:\n{log}");
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
    }

    /// SIGTERM and wait; `None` when it had to be killed.
    fn terminate(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let pid = i32::try_from(self.child.id()).context("the process id")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("stopping hearth up")?;
        self.wait()
    }

    /// Its end; `None` when it had to be killed.
    fn wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let start = Instant::now();
        while start.elapsed() < STOP_DEADLINE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            thread::sleep(PAUSE);
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(None)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Only after an error or a panic; `stop` has done it otherwise.
        if self.dir.exists()
            && let Err(error) = self.end()
        {
            eprintln!("hearth-loadtest: {error:#}");
        }
    }
}
