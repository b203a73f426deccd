//! One kernel: a process, and the connection to it.
//!
//! ```text
//!                 socket pair: frames of Jupyter messages (frame.rs, message.rs)
//!   Kernel ◀════▶ shared memory: text that is held back (window.rs)          ◀════▶ process
//!                 two pipes: what subprocesses and C code write to fd 1 and 2
//! ```
//!
//! One stream carries all of Jupyter's channels, so order is total and `execute_reply` ends a run. The
//! Python side (`languages/python/hearth_channel.py`) documents the framing.

mod cgroup;
mod frame;
mod message;
mod pipe;
mod process;
mod window;

pub(crate) use message::{Content, Message, Request, Settings};

use crate::{config::Config, error::RuntimeError, language::Language};
use frame::Frames;
use pipe::Pipe;
use process::Process;
use std::{io, path::PathBuf, process::ExitStatus, time::Duration};
use tokio::{io::AsyncWriteExt, net::UnixStream, time};
use window::{Phase, Window};

/// How long a killed kernel may take to be reaped.
const REAP: Duration = Duration::from_secs(5);
/// What is kept of a failed start's output.
const START_OUTPUT_BYTES: usize = 4 << 10;

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Stdout = 0,
    Stderr = 1,
}

/// What comes from a kernel.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(Message),
    /// Bytes that something wrote to file descriptor 1 or 2.
    Bytes(Source, Vec<u8>),
    /// The process has ended.
    Exited(ExitStatus),
}

/// Why a kernel can no longer be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the connection to the kernel failed")]
    Io(#[from] io::Error),
    #[error("the kernel broke the protocol")]
    Frame(#[from] frame::BadFrame),
    #[error("the kernel broke the protocol")]
    Message(#[from] message::BadMessage),
    #[error("the request cannot be encoded")]
    Encode(#[from] serde_json::Error),
    #[error("the kernel closed its connection")]
    Closed,
    #[error("the kernel process ended: {0}")]
    Exited(ExitStatus),
    #[error("the kernel refused a request of ours")]
    Refused,
    #[error("the kernel did not answer in time")]
    Late,
}

/// A running kernel. Dropping it kills its process and all that belongs to it.
#[derive(Debug)]
pub(crate) struct Kernel {
    process: Process,
    socket: UnixStream,
    closed: bool,
    frames: Frames,
    window: Window,
    stdout: Pipe,
    stderr: Pipe,
    /// Frames received, as the window counts them.
    received: u32,
    requests: u64,
    /// The version of the default environment it has.
    pub(crate) env_version: u64,
}

impl Kernel {
    /// Starts a kernel and waits until it is ready. `name` is unique among living kernels.
    pub(crate) async fn start(config: &Config, language: Language, name: &str) -> Result<Self, RuntimeError> {
        let folder = config.run_dir.join(language.name());
        let failed = |error: io::Error| RuntimeError::Start(error.to_string());
        write_files(&folder, language).map_err(failed)?;
        let window = Window::new().map_err(failed)?;
        let command = language.command(config, &folder);
        let (process, socket, [stdout, stderr]) =
            process::spawn(config, &command, name, window.file()).map_err(failed)?;
        let mut kernel = Self {
            process,
            socket: UnixStream::from_std(socket).map_err(failed)?,
            closed: false,
            frames: Frames::default(),
            window,
            stdout: Pipe::new(stdout).map_err(failed)?,
            stderr: Pipe::new(stderr).map_err(failed)?,
            received: 0,
            requests: 0,
            env_version: 0,
        };
        let mut said = Vec::new();
        match time::timeout(config.limits.start, kernel.ready(&mut said)).await {
            Ok(Ok(())) => Ok(kernel),
            Ok(Err(error)) => {
                kernel.kill().await;
                let said = String::from_utf8_lossy(&said);
                Err(RuntimeError::Start(format!("{error}; {}", said.trim_end())))
            }
            Err(_) => Err(RuntimeError::Start("not ready in time".into())),
        }
    }

    async fn ready(&mut self, said: &mut Vec<u8>) -> Result<(), Broken> {
        loop {
            match self.next().await {
                Ok(Incoming::Message(Message { content: Content::Ready, .. })) => return Ok(()),
                Ok(Incoming::Message(_)) => {}
                Ok(Incoming::Bytes(_, bytes)) => keep_tail(said, &bytes),
                Ok(Incoming::Exited(status)) => {
                    self.drain_pipes(|_, bytes| keep_tail(said, bytes));
                    return Err(Broken::Exited(status));
                }
                Err(error) => {
                    self.drain_pipes(|_, bytes| keep_tail(said, bytes));
                    return Err(error);
                }
            }
        }
    }

    /// Sends a request; returns its id, which its answers name.
    pub(crate) async fn send(&mut self, request: &Request<'_>) -> Result<String, Broken> {
        self.requests += 1;
        let id = self.requests.to_string();
        let frame = frame::encode(&request.encode(&id)?);
        // The common case needs no readiness: the socket's buffer is empty.
        let sent = match self.socket.try_write(&frame) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        if sent < frame.len() {
            self.socket.write_all(&frame[sent..]).await?;
        }
        Ok(id)
    }

    /// Sends a request of ours and waits for its answer; what else comes is dropped.
    pub(crate) async fn call(&mut self, request: &Request<'_>, within: Duration) -> Result<(), Broken> {
        let answer = async {
            let id = self.send(request).await?;
            loop {
                match self.next().await? {
                    Incoming::Message(Message { parent, content: Content::Done { ok } }) if parent == id => {
                        return if ok { Ok(()) } else { Err(Broken::Refused) };
                    }
                    Incoming::Exited(status) => return Err(Broken::Exited(status)),
                    Incoming::Message(_) | Incoming::Bytes(..) => {}
                }
            }
        };
        time::timeout(within, answer).await.unwrap_or(Err(Broken::Late))
    }

    /// The next thing that comes. Bytes of the pipes are taken first: they were written before what the
    /// kernel says at the end of a run.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Incoming, Broken> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Incoming::Message(message));
            }
            tokio::select! {
                // Pipes before the socket, as said above; the end of the process last, after its words.
                biased;
                bytes = self.stdout.read() => return Ok(Incoming::Bytes(Source::Stdout, bytes?)),
                bytes = self.stderr.read() => return Ok(Incoming::Bytes(Source::Stderr, bytes?)),
                ready = self.socket.readable(), if !self.closed => {
                    ready?;
                    self.fill()?;
                }
                status = self.process.wait() => return Ok(Incoming::Exited(status?)),
            }
        }
    }

    fn fill(&mut self) -> Result<(), Broken> {
        let socket = &self.socket;
        match self.frames.fill(|buffer| socket.try_read(buffer)) {
            // The process ends next, or is killed by whoever waits for it too long.
            Ok(0) => self.closed = true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.closed = true,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn take_message(&mut self) -> Result<Option<Message>, Broken> {
        let Some(frame) = self.frames.next()? else { return Ok(None) };
        self.received = self.received.wrapping_add(1);
        Ok(Some(Message::parse(frame)?))
    }

    /// Has the kernel closed its end while it lives on?
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// A run begins: nothing of it was shown yet.
    pub(crate) fn begin(&mut self) {
        self.window.reset();
    }

    /// Shows text that the kernel holds back.
    pub(crate) fn peek(&mut self, show: impl FnMut(Source, &[u8])) {
        self.window.peek(self.received, show);
    }

    /// How much of a received text was shown before.
    pub(crate) fn skip(&mut self, source: Source, text: &[u8]) -> usize {
        self.window.skip(source, text)
    }

    /// What was written to the pipes before now, up to what a pipe can hold.
    pub(crate) fn drain_pipes(&mut self, mut take: impl FnMut(Source, &[u8])) {
        self.stdout.drain(|bytes| take(Source::Stdout, bytes));
        self.stderr.drain(|bytes| take(Source::Stderr, bytes));
    }

    /// The last messages of a process that has ended; stops at the first that is none.
    pub(crate) fn last_messages(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            while let Ok(Some(message)) = self.take_message() {
                messages.push(message);
            }
            let socket = &self.socket;
            match self.frames.fill(|buffer| pipe::read_now(socket, buffer)) {
                Ok(0) | Err(_) => return messages,
                Ok(_) => {}
            }
        }
    }

    /// Interrupts the cell, with its subprocesses; returns whether there was one to interrupt. A kernel
    /// that has not begun (or has just ended) the cell would ignore the signal.
    pub(crate) fn interrupt(&self) -> bool {
        let can = self.window.phase() == Phase::Running;
        if can {
            self.process.interrupt();
        }
        can
    }

    /// Has the cell's code ended, though the reply has not come yet?
    pub(crate) fn is_ending(&self) -> bool {
        self.window.phase() == Phase::Ending
    }

    /// Processes that the memory limit has cost so far; `None` without a cgroup.
    pub(crate) fn oom_kills(&mut self) -> Option<u64> {
        self.process.oom_kills()
    }

    /// The same, cheaper, for the time before a run.
    pub(crate) fn oom_kills_before(&mut self) -> Option<u64> {
        self.process.oom_kills_before()
    }

    /// The kernel's current directory.
    pub(crate) fn cwd(&self) -> io::Result<PathBuf> {
        std::fs::read_link(format!("/proc/{}/cwd", self.process.pid()))
    }

    /// Kills the kernel and everything it started, and waits for its end.
    pub(crate) async fn kill(&mut self) -> Option<ExitStatus> {
        self.process.kill();
        match time::timeout(REAP, self.process.wait()).await {
            Ok(Ok(status)) => Some(status),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

fn keep_tail(said: &mut Vec<u8>, bytes: &[u8]) {
    said.extend_from_slice(bytes);
    let surplus = said.len().saturating_sub(START_OUTPUT_BYTES);
    said.drain(..surplus);
}

/// Writes the kernel's program files, each whole or not at all: another kernel may be starting from them.
fn write_files(folder: &std::path::Path, language: Language) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (name, text) in language.files() {
        let path = folder.join(name);
        if std::fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            continue;
        }
        let fresh = folder.join(format!(".{name}.new"));
        std::fs::write(&fresh, text)?;
        std::fs::rename(&fresh, &path)?;
    }
    Ok(())
}
