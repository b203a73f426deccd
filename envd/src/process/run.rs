//! The task that owns one running process: feeds it, reads it, ends it in time, says how it ended.

use super::{
    Event, Exit,
    groups::Group,
    output::Limit,
    pipes::{self, CHUNK_BYTES},
    start::Running,
};
use std::{
    io::{self, Cursor},
    os::fd::AsFd,
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe,
    process::{Child, ChildStdin},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

/// How long the last output of a process that has ended may wait for its reader.
const DELIVERY_LIMIT: Duration = Duration::from_secs(60);

/// The limits of one run.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The whole tree is killed when it is over.
    pub timeout: Duration,
    /// Limit per output stream.
    pub output_bytes_max: usize,
}

/// One running process.
pub struct Run {
    child: Child,
    pid: u32,
    stdin: Option<(ChildStdin, Cursor<Vec<u8>>)>,
    stdout: Output,
    stderr: Output,
    group: Arc<Group>,
    deadline: Instant,
    events: mpsc::Sender<Event>,
}

/// How the wait for the process ended.
enum Ended {
    Exited {
        status: ExitStatus,
        timed_out: bool,
    },
    /// Nobody listens any more.
    Abandoned,
}

impl Run {
    /// Takes a process over.
    pub fn new(
        running: Running,
        group: Arc<Group>,
        stdin: Vec<u8>,
        limits: Limits,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let Running { child, stdin: pipe, stdout, stderr } = running;
        Self {
            pid: child.id().unwrap_or_default(),
            child,
            stdin: pipe.map(|pipe| (pipe, Cursor::new(stdin))),
            stdout: Output::new(stdout, limits.output_bytes_max, Event::Stdout),
            stderr: Output::new(stderr, limits.output_bytes_max, Event::Stderr),
            group,
            deadline: Instant::now() + limits.timeout,
            events,
        }
    }

    /// Runs until the process has ended and its output is delivered.
    pub async fn drive(mut self) {
        // The channel is new and empty, so there is room.
        let _ = self.events.try_send(Event::Started { pid: self.pid });
        match self.wait().await {
            Ok(Ended::Exited { status, timed_out }) => {
                if timeout(DELIVERY_LIMIT, self.finish(status, timed_out)).await.is_err() {
                    tracing::warn!(pid = self.pid, "the last output was not read in time");
                }
            }
            Ok(Ended::Abandoned) => {}
            Err(error) => tracing::error!(pid = self.pid, %error, "the process cannot be waited for"),
        }
        self.stdout.discard();
        self.stderr.discard();
    }

    async fn wait(&mut self) -> io::Result<Ended> {
        let mut timed_out = false;
        let mut feeding = self.stdin.take();
        loop {
            tokio::select! {
                // Endings first: a process that never stops writing must not outrun its limits.
                biased;
                () = self.events.closed() => {
                    pipes::kill(&self.group, &self.child);
                    self.child.wait().await?;
                    return Ok(Ended::Abandoned);
                }
                () = sleep_until(self.deadline), if !timed_out => {
                    timed_out = true;
                    pipes::kill(&self.group, &self.child);
                }
                status = self.child.wait() => return Ok(Ended::Exited { status: status?, timed_out }),
                () = feed(&mut feeding), if feeding.is_some() => feeding = None,
                // Not biased: neither stream may starve the other.
                () = async { tokio::select! {
                    () = self.stdout.forward(&self.events) => {}
                    () = self.stderr.forward(&self.events) => {}
                } } => {}
            }
        }
    }

    /// Delivers what was written before the exit, then the exit.
    async fn finish(&mut self, status: ExitStatus, timed_out: bool) {
        let stdout_truncated = self.stdout.drain(&self.events).await;
        let stderr_truncated = self.stderr.drain(&self.events).await;
        let exit = Exit { stdout_truncated, stderr_truncated, ..Exit::of(status, timed_out, &self.group) };
        // An error means that nobody listens any more.
        let _ = self.events.send(Event::Exited(exit)).await;
    }
}

/// Writes the input and closes the pipe. A process that does not read it to the end is within its rights.
async fn feed(stdin: &mut Option<(ChildStdin, Cursor<Vec<u8>>)>) {
    if let Some((pipe, bytes)) = stdin {
        // Cancel safe: the cursor moves on with every write. An error means that the other end is closed.
        let _ = pipe.write_all_buf(bytes).await;
    }
}

/// Our end of an output pipe.
struct Output {
    pipe: Option<pipe::Receiver>,
    limit: Limit,
    event: fn(Vec<u8>) -> Event,
    buffer: Box<[u8]>,
}

impl Output {
    fn new(pipe: pipe::Receiver, bytes_max: usize, event: fn(Vec<u8>) -> Event) -> Self {
        Self {
            pipe: Some(pipe),
            limit: Limit::new(bytes_max),
            event,
            buffer: vec![0; CHUNK_BYTES].into_boxed_slice(),
        }
    }

    /// Passes one chunk on; waits for ever when the stream has ended or nobody listens.
    ///
    /// # Cancel safety
    /// Nothing is lost: room is reserved before the pipe is read, and nothing is awaited after.
    async fn forward(&mut self, events: &mpsc::Sender<Event>) {
        let Some(pipe) = &self.pipe else { return std::future::pending().await };
        let Ok(room) = events.reserve().await else { return std::future::pending().await };
        let read = match pipe.readable().await {
            Ok(()) => pipe.try_read(&mut self.buffer),
            Err(error) => Err(error),
        };
        match read {
            Ok(0) => self.pipe = None,
            Ok(length) => {
                let now = self.limit.take(&self.buffer[..length]);
                if 0 < now {
                    room.send((self.event)(self.buffer[..now].to_vec()));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.pipe = None,
        }
    }

    /// Passes on what is in the pipe now and what the limit held back; says whether bytes are missing.
    ///
    /// Background processes may hold the pipe and go on writing: what was there at the exit fits into the pipe, so no
    /// more than its size is read.
    async fn drain(&mut self, events: &mpsc::Sender<Event>) -> bool {
        let mut left = self.pipe.as_ref().map_or(0, pipes::size);
        while 0 < left
            && let Some(pipe) = &self.pipe
        {
            let Ok(room) = events.reserve().await else { return false };
            // The plain system call: tokio's own answer may be older than the last write.
            match nix::unistd::read(pipe.as_fd(), &mut self.buffer) {
                Ok(0) => self.pipe = None,
                Ok(length) => {
                    left = left.saturating_sub(length);
                    let now = self.limit.take(&self.buffer[..length]);
                    if 0 < now {
                        room.send((self.event)(self.buffer[..now].to_vec()));
                    }
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => break,
                Err(_) => self.pipe = None,
            }
        }
        let rest = self.limit.finish();
        for chunk in rest.bytes.chunks(CHUNK_BYTES) {
            if events.send((self.event)(chunk.to_vec())).await.is_err() {
                break;
            }
        }
        rest.truncated
    }

    fn discard(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            pipes::discard(pipe, std::mem::take(&mut self.buffer));
        }
    }
}
