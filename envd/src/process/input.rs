//! A process's input: one task writes what callers send, in their order, each within a bounded time.

use super::terminal::Terminal;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt as _,
    process::ChildStdin,
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

/// Writes that wait for the one under way.
const WAITING_MAX: usize = 16;
/// How long a process may take to read what was written to it, what came before included.
const TAKE_LIMIT: Duration = Duration::from_secs(10);
/// What a terminal takes for the end of its input: ctrl-D.
const END_OF_FILE: u8 = 4;

/// Why input was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// It never had any, closed it, or has ended.
    #[error("the process has no open input")]
    Closed,
    /// It does not read.
    #[error("the process did not read its input in time; it took {0} bytes")]
    Slow(usize),
}

/// Where input goes. Clones lead to the same process.
#[derive(Debug, Clone)]
pub struct Input {
    messages: mpsc::Sender<Message>,
}

#[derive(Debug)]
struct Message {
    bytes: Vec<u8>,
    close: bool,
    deadline: Instant,
    reply: oneshot::Sender<Result<(), InputError>>,
}

/// The writing end.
#[derive(Debug)]
pub enum Sink {
    /// A pipe.
    Pipe(ChildStdin),
    /// A terminal.
    Terminal(Arc<Terminal>),
}

impl Sink {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.write(bytes).await,
            Self::Terminal(terminal) => terminal.write(bytes).await,
        }
    }
}

impl Input {
    /// Starts the task, which ends with the handle, or when the input is closed. `first` is written first, however long
    /// the process takes; without `keep` the input is closed after it.
    pub fn start(sink: Sink, first: Vec<u8>, keep: bool) -> (Self, AbortOnDropHandle<()>) {
        let (messages, waiting) = mpsc::channel(WAITING_MAX);
        let task = tokio::spawn(serve(sink, first, keep, waiting));
        (Self { messages }, AbortOnDropHandle::new(task))
    }

    /// Writes bytes, and closes the input after them if `close` is set; returns when the process's side has taken them.
    /// What has begun is written on also when this is dropped, until its time is over.
    pub async fn write(&self, bytes: Vec<u8>, close: bool) -> Result<(), InputError> {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + TAKE_LIMIT;
        let message = Message { bytes, close, deadline, reply };
        match timeout_at(deadline, self.messages.send(message)).await {
            Ok(Ok(())) => answer.await.unwrap_or(Err(InputError::Closed)),
            Ok(Err(_)) => Err(InputError::Closed),
            Err(_) => Err(InputError::Slow(0)),
        }
    }
}

async fn serve(mut sink: Sink, first: Vec<u8>, keep: bool, mut messages: mpsc::Receiver<Message>) {
    let mut taken = 0;
    if write(&mut sink, &first, &mut taken).await.is_err() || !keep {
        return;
    }
    while let Some(Message { bytes, close, deadline, reply }) = messages.recv().await {
        let mut taken = 0;
        let written = timeout_at(deadline, async {
            write(&mut sink, &bytes, &mut taken).await?;
            match &sink {
                Sink::Terminal(_) if close => write(&mut sink, &[END_OF_FILE], &mut 0).await,
                Sink::Terminal(_) | Sink::Pipe(_) => Ok(()),
            }
        });
        let (answer, closed) = match written.await {
            Ok(Ok(())) => (Ok(()), close && matches!(sink, Sink::Pipe(_))),
            // The other end is closed: of a pipe for ever.
            Ok(Err(_)) => (Err(InputError::Closed), true),
            Err(_) => (Err(InputError::Slow(taken)), false),
        };
        if closed {
            messages.close();
        }
        // Its caller may have gone.
        let _ = reply.send(answer);
        if closed {
            return;
        }
    }
}

async fn write(sink: &mut Sink, bytes: &[u8], taken: &mut usize) -> io::Result<()> {
    while *taken < bytes.len() {
        match sink.write(&bytes[*taken..]).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => *taken += count,
        }
    }
    Ok(())
}
