//! The task that owns one background process: reads it into its log, ends it in time, says how it ended.

use super::{
    Exit,
    groups::Group,
    log::{Log, Source},
    pipes,
    registry::Registered,
    terminal::Terminal,
};
use std::{io, process::ExitStatus, sync::Arc};
use tokio::{
    net::unix::pipe,
    process::Child,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

/// What a terminal holds is less than this.
const TERMINAL_BYTES_MAX: usize = 1 << 20;

/// One running process.
pub struct Background {
    /// The process.
    pub child: Child,
    /// Its streams.
    pub streams: [Stream; 2],
    /// Its tree.
    pub group: Arc<Group>,
    /// Where its output goes.
    pub log: Arc<Log>,
    /// When the whole tree is killed.
    pub deadline: Option<Instant>,
    /// Feeds it.
    pub input: Option<AbortOnDropHandle<()>>,
    /// Its place in the table.
    pub registered: Registered,
}

/// One stream of a process.
pub struct Stream {
    source: Source,
    from: From,
    buffer: Box<[u8]>,
}

enum From {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
    Nothing,
}

impl Background {
    /// Runs until the process has ended and its output is in the log.
    pub async fn drive(mut self) {
        match self.wait().await {
            Ok((status, timed_out)) => {
                for stream in &mut self.streams {
                    stream.drain(&self.log).await;
                }
                self.log.end(Exit::of(status, timed_out, &self.group));
            }
            Err(error) => {
                tracing::error!(pid = self.registered.process.facts.pid, %error, "the process cannot be waited for");
                self.log.end(Exit { code: -1, error: error.to_string(), ..Exit::default() });
            }
        }
        for stream in self.streams {
            stream.discard();
        }
    }

    async fn wait(&mut self) -> io::Result<(ExitStatus, bool)> {
        let mut timed_out = false;
        loop {
            let [first, second] = &mut self.streams;
            tokio::select! {
                // Endings first: a process that never stops writing must not outrun its limits.
                biased;
                () = at(self.deadline), if !timed_out => {
                    timed_out = true;
                    pipes::kill(&self.group, &self.child);
                }
                status = self.child.wait() => return Ok((status?, timed_out)),
                // Not biased: neither stream may starve the other.
                () = async { tokio::select! {
                    () = first.forward(&self.log) => {}
                    () = second.forward(&self.log) => {}
                } } => {}
            }
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Stream {
    /// A pipe.
    pub fn pipe(source: Source, pipe: pipe::Receiver) -> Self {
        Self::new(source, From::Pipe(pipe))
    }

    /// The output of a terminal.
    pub fn terminal(terminal: Arc<Terminal>) -> Self {
        Self::new(Source::Terminal, From::Terminal(terminal))
    }

    /// No stream: a terminal has one for both.
    pub fn none() -> Self {
        Self { source: Source::Stderr, from: From::Nothing, buffer: Box::default() }
    }

    fn new(source: Source, from: From) -> Self {
        Self { source, from, buffer: vec![0; pipes::CHUNK_BYTES].into_boxed_slice() }
    }

    /// Passes one chunk on; waits for ever when the stream has ended.
    ///
    /// # Cancel safety
    /// Nothing is lost: there is room before the stream is read, and nothing is awaited after.
    async fn forward(&mut self, log: &Log) {
        if matches!(self.from, From::Nothing) {
            return std::future::pending().await;
        }
        log.room(self.buffer.len()).await;
        let read = match &self.from {
            From::Pipe(pipe) => match pipe.readable().await {
                Ok(()) => pipe.try_read(&mut self.buffer),
                Err(error) => Err(error),
            },
            From::Terminal(terminal) => terminal.read(&mut self.buffer).await,
            From::Nothing => Ok(0),
        };
        self.take(read, log);
    }

    /// Writes what was read to the log; how much, none when there is nothing more now.
    fn take(&mut self, read: io::Result<usize>, log: &Log) -> Option<usize> {
        match read {
            Ok(length) if 0 < length => {
                log.write(self.source, &self.buffer[..length]);
                return Some(length);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Some(0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => self.from = From::Nothing,
        }
        None
    }

    /// Passes on what is there now. Background processes may hold the stream and go on writing: what was there at the
    /// exit is not more than it can hold, so no more is read.
    async fn drain(&mut self, log: &Log) {
        let mut left = match &self.from {
            From::Pipe(pipe) => pipes::size(pipe),
            From::Terminal(_) => TERMINAL_BYTES_MAX,
            From::Nothing => 0,
        };
        while 0 < left {
            log.room(self.buffer.len()).await;
            let read = match &self.from {
                // The plain system call: tokio's own answer may be older than the last write.
                From::Pipe(pipe) => nix::unistd::read(pipe, &mut self.buffer).map_err(io::Error::from),
                From::Terminal(terminal) => terminal.read_now(&mut self.buffer),
                From::Nothing => return,
            };
            let Some(length) = self.take(read, log) else { return };
            left = left.saturating_sub(length);
        }
    }

    /// Goes on reading a pipe that others hold. A terminal ends for them: they get SIGHUP.
    fn discard(self) {
        if let From::Pipe(pipe) = self.from {
            pipes::discard(pipe, self.buffer);
        }
    }
}
