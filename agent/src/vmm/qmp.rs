//! QMP: QEMU's control protocol over a Unix socket (QEMU's docs/interop/qmp-spec.rst).
//!
//! One task owns the connection. Replies are matched by id; events are kept for those who wait for one.

use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::{self, IoSlice},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest},
    net::UnixStream,
    sync::{broadcast, mpsc, oneshot},
    time::timeout,
};

/// Longest line we read: events and replies are far below.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Commands that may wait for the connection.
const QUEUE: usize = 16;
/// Events kept for a slow listener.
const EVENTS: usize = 64;
/// QEMU answers commands within milliseconds; one that does not is broken.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);

/// Why a command failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QmpError {
    /// The VMM's end is closed: it has ended, or is about to.
    #[error("the VMM closed its control socket")]
    Closed,
    /// No reply in time.
    #[error("the VMM did not answer `{0}` in time")]
    Deadline(String),
    /// QEMU refused.
    #[error("the VMM refused `{command}`: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// Not QMP.
    #[error("the VMM's control socket: {0}")]
    Protocol(String),
}

struct Command {
    name: String,
    arguments: Value,
    fd: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

/// A connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Qmp {
    commands: mpsc::Sender<Command>,
    events: broadcast::Sender<Event>,
}

/// An event that QEMU announced.
#[derive(Debug, Clone)]
pub struct Event {
    /// e.g. `MIGRATION`, `STOP`, `RESUME`, `SHUTDOWN`.
    pub name: String,
    /// Its data, null when there is none.
    pub data: Value,
}

impl Qmp {
    /// Connects, reads the greeting and leaves negotiation mode. The listening socket must exist already (the agent
    /// makes it and QEMU inherits it), so that this waits instead of polling. The task ends with the connection.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<Self, QmpError> {
        let protocol = |error: io::Error| QmpError::Protocol(error.to_string());
        let stream = UnixStream::connect(path).await.map_err(protocol)?;
        let mut reader = BufReader::new(stream);
        let greeting = timeout(deadline, read_line(&mut reader))
            .await
            .map_err(|_| QmpError::Deadline("greeting".to_owned()))??;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Protocol("no QMP greeting".to_owned()));
        }
        let (commands, queue) = mpsc::channel(QUEUE);
        let (events, _) = broadcast::channel(EVENTS);
        tokio::spawn(serve(reader, queue, events.clone()));
        let qmp = Self { commands, events };
        qmp.call("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and returns its result.
    pub async fn call(&self, name: &str, arguments: Value) -> Result<Value, QmpError> {
        self.send(name, arguments, None).await
    }

    /// Gives QEMU a descriptor under a name (`getfd`).
    pub async fn give(&self, name: &str, fd: OwnedFd) -> Result<(), QmpError> {
        self.send("getfd", json!({ "fdname": name }), Some(fd)).await.map(drop)
    }

    async fn send(&self, name: &str, arguments: Value, fd: Option<OwnedFd>) -> Result<Value, QmpError> {
        let (reply, answer) = oneshot::channel();
        let command = Command { name: name.to_owned(), arguments, fd, reply };
        self.commands.send(command).await.map_err(|_| QmpError::Closed)?;
        match timeout(REPLY_DEADLINE, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(QmpError::Closed),
            Err(_) => Err(QmpError::Deadline(name.to_owned())),
        }
    }

    /// Subscribes to events; subscribe before the command that causes the event.
    pub fn events(&self) -> Events {
        Events(self.events.subscribe())
    }
}

/// A subscription.
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// Waits for an event for which `wanted` gives a value. Cancel safe.
    pub async fn wait<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&Event) -> Option<T>,
    ) -> Result<T, QmpError> {
        timeout(deadline, async {
            loop {
                match self.0.recv().await {
                    Ok(event) => {
                        if let Some(value) = wanted(&event) {
                            return Ok(value);
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Err(QmpError::Closed),
                }
            }
        })
        .await
        .map_err(|_| QmpError::Deadline(what.to_owned()))?
    }
}

/// Commands without a reply yet, by id.
type Waiting = HashMap<u64, (String, oneshot::Sender<Result<Value, QmpError>>)>;

async fn serve(
    mut stream: BufReader<UnixStream>,
    mut queue: mpsc::Receiver<Command>,
    events: broadcast::Sender<Event>,
) {
    let mut waiting: Waiting = HashMap::new();
    let mut next = 0u64;
    let mut line = Vec::new();
    loop {
        tokio::select! {
            // Replies first: a command is cheap to send a little later.
            biased;
            read = read_more(&mut stream, &mut line) => match read {
                Ok(value) => dispatch(value, &mut waiting, &events),
                Err(_) => break,
            },
            command = queue.recv() => {
                let Some(command) = command else { break };
                next += 1;
                let text = json!({ "execute": command.name, "arguments": command.arguments, "id": next });
                let sent = write(stream.get_mut(), &format!("{text}\n"), command.fd).await;
                waiting.insert(next, (command.name, command.reply));
                if sent.is_err() {
                    break;
                }
            }
        }
    }
    for (_, (_, reply)) in waiting {
        // The caller may have stopped waiting.
        let _ = reply.send(Err(QmpError::Closed));
    }
}

fn dispatch(value: Value, waiting: &mut Waiting, events: &broadcast::Sender<Event>) {
    if let Some(name) = value.get("event").and_then(Value::as_str) {
        let event = Event { name: name.to_owned(), data: value.get("data").cloned().unwrap_or(Value::Null) };
        if event.name == "BLOCK_IO_ERROR" {
            metrics::counter!("hearth_agent_disk_errors_total").increment(1);
        }
        tracing::debug!(event = %event.name, data = %event.data, "vmm event");
        // Nobody listening is normal.
        let _ = events.send(event);
        return;
    }
    let Some((command, reply)) = value.get("id").and_then(Value::as_u64).and_then(|id| waiting.remove(&id))
    else {
        return;
    };
    let result = match value.get("error") {
        None => Ok(value.get("return").cloned().unwrap_or(Value::Null)),
        Some(error) => {
            let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
            Err(QmpError::Refused { command, reason })
        }
    };
    // The caller may have stopped waiting.
    let _ = reply.send(result);
}

async fn read_line(reader: &mut BufReader<UnixStream>) -> Result<Value, QmpError> {
    let mut line = Vec::new();
    read_more(reader, &mut line).await
}

/// Reads the rest of a line that `line` has the beginning of. Cancel safe: what was read stays in `line`.
async fn read_more(reader: &mut BufReader<UnixStream>, line: &mut Vec<u8>) -> Result<Value, QmpError> {
    loop {
        let part = reader.fill_buf().await.map_err(|_| QmpError::Closed)?;
        if part.is_empty() {
            return Err(QmpError::Closed);
        }
        let end = part.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(part.len(), |at| at + 1);
        line.extend_from_slice(&part[..taken]);
        reader.consume(taken);
        if LINE_BYTES_MAX < line.len() {
            return Err(QmpError::Protocol("a line over 1 MiB".to_owned()));
        }
        if end.is_some() {
            let value = serde_json::from_slice(line).map_err(|error| QmpError::Protocol(error.to_string()));
            line.clear();
            return value;
        }
    }
}

/// Writes a line; with a descriptor attached to its first byte when there is one.
async fn write(stream: &mut UnixStream, line: &str, fd: Option<OwnedFd>) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let mut bytes = line.as_bytes();
    if let Some(fd) = fd {
        let fds = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                sendmsg::<()>(
                    stream.as_raw_fd(),
                    &[IoSlice::new(bytes)],
                    &rights,
                    MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                    None,
                )
                .map_err(io::Error::from)
            })
            .await?;
        bytes = &bytes[sent..];
    }
    stream.write_all(bytes).await
}
