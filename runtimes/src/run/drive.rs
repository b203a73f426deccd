//! Carries one request out on a kernel: its output into the sink, its time limit, its interrupt.
//!
//! ```text
//!   Running ── time is up, or the reader goes ──▶ Interrupted ── grace is up ──▶ killed
//!      └──────────── reply, or the kernel ends ◀──────┘
//! ```

use crate::{
    kernel::{Broken, Content, Incoming, Kernel, Message, Request, Source},
    output::Sink,
};
use std::{pin::pin, process::ExitStatus, time::Duration};
use tokio::time::{self, Instant};

/// After this much quiet, text that the kernel holds back is looked at.
const QUIET: Duration = Duration::from_millis(15);
/// How long a kernel that closed its connection may take to end before it counts as broken.
const CLOSING: Duration = Duration::from_secs(1);

/// How long a kernel may take to report the end of code that it has left after an interrupt.
const ENDING: Duration = Duration::from_secs(5);

/// How long a run may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) timeout: Duration,
    pub(crate) grace: Duration,
}

/// Why a run of ours is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Timeout,
    Abandoned,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The kernel replied and can be used again.
    Replied { ok: bool, count: u32, stop: Option<Stop> },
    /// It did not react to the interrupt in time; it has to be killed.
    Deaf(Stop),
    /// It ended or broke the protocol; whatever is left has to be killed.
    Gone(Option<ExitStatus>),
}

/// Runs `request` and returns how it ended. What the kernel has put out by then is in the sink.
pub(crate) async fn drive(
    kernel: &mut Kernel,
    request: &Request<'_>,
    sink: &mut Sink,
    limits: Limits,
) -> Ended {
    kernel.begin();
    let id = match time::timeout(limits.timeout, kernel.send(request)).await {
        Ok(Ok(id)) => id,
        Ok(Err(error)) => return gone(kernel, sink, None, &error),
        Err(_) => return Ended::Deaf(Stop::Timeout),
    };
    let mut stop = None;
    let mut interrupted = false;
    let mut extended = false;
    let mut deadline = pin!(time::sleep(limits.timeout));
    let mut quiet = pin!(time::sleep(QUIET));
    loop {
        tokio::select! {
            // The clocks first: a kernel that never stops talking must not outrun them.
            biased;
            () = sink.mailbox().abandoned(), if stop.is_none() => {
                stop = Some(Stop::Abandoned);
                interrupted = kernel.interrupt();
                deadline.as_mut().reset(Instant::now() + limits.grace);
            }
            () = &mut deadline => match stop {
                None => {
                    stop = Some(Stop::Timeout);
                    interrupted = kernel.interrupt();
                    deadline.as_mut().reset(Instant::now() + limits.grace);
                }
                // It reacted and only needs time to say so: formatting a first traceback is slow.
                Some(_) if kernel.is_ending() && !extended => {
                    extended = true;
                    deadline.as_mut().reset(Instant::now() + ENDING);
                }
                Some(stop) => {
                    kernel.peek(|source, text| sink.text(source, text));
                    kernel.drain_pipes(|source, bytes| sink.text(source, bytes));
                    return Ended::Deaf(stop);
                }
            },
            incoming = kernel.next() => match incoming {
                Ok(Incoming::Message(message)) => {
                    if let Some((ok, count)) = take(kernel, sink, &id, message) {
                        kernel.drain_pipes(|source, bytes| sink.text(source, bytes));
                        return Ended::Replied { ok, count, stop };
                    }
                }
                Ok(Incoming::Bytes(source, bytes)) => {
                    // Text of the cell from before a subprocess wrote comes first.
                    kernel.peek(|source, text| sink.text(source, text));
                    sink.text(source, &bytes);
                }
                Ok(Incoming::Exited(status)) => return exited(kernel, sink, &id, status),
                Err(error) => return gone(kernel, sink, stop, &error),
            },
            () = &mut quiet => {
                kernel.peek(|source, text| sink.text(source, text));
                if stop.is_some() && !interrupted {
                    interrupted = kernel.interrupt();
                }
                if kernel.is_closed() {
                    return closed(kernel, sink, &id).await;
                }
                quiet.as_mut().reset(Instant::now() + QUIET);
            }
        }
    }
}

/// Takes one message; returns the reply if it is that.
fn take(kernel: &mut Kernel, sink: &mut Sink, id: &str, message: Message) -> Option<(bool, u32)> {
    let ours = message.parent == id;
    match message.content {
        Content::Stream(source, text) => {
            // Also for text of an earlier run, so that the count of what was shown stays right.
            let old = kernel.skip(source, text.as_bytes());
            if ours {
                sink.text(source, &text.as_bytes()[old..]);
            }
        }
        Content::Display(bundle, is_main) if ours => sink.display(bundle, is_main),
        Content::Error(error) if ours => sink.error(error),
        Content::Reply { ok, count } if ours => return Some((ok, count)),
        Content::Display(..)
        | Content::Error(_)
        | Content::Reply { .. }
        | Content::Done { .. }
        | Content::Ready
        | Content::Other => {}
    }
    None
}

/// The process has ended: takes what it said before.
fn exited(kernel: &mut Kernel, sink: &mut Sink, id: &str, status: ExitStatus) -> Ended {
    for message in kernel.last_messages() {
        // Even a reply: without its process, the context is lost.
        take(kernel, sink, id, message);
    }
    kernel.peek(|source, text| sink.text(source, text));
    kernel.drain_pipes(|source, bytes| sink.text(source, bytes));
    Ended::Gone(Some(status))
}

/// The connection is closed while the process lives: normally it is just ending.
async fn closed(kernel: &mut Kernel, sink: &mut Sink, id: &str) -> Ended {
    let end = async {
        loop {
            match kernel.next().await {
                Ok(Incoming::Exited(status)) => return Some(status),
                Ok(Incoming::Bytes(source, bytes)) => sink.text(source, &bytes),
                Ok(Incoming::Message(_)) => {}
                Err(_) => return None,
            }
        }
    };
    match time::timeout(CLOSING, end).await {
        Ok(Some(status)) => exited(kernel, sink, id, status),
        Ok(None) | Err(_) => gone(kernel, sink, None, &Broken::Closed),
    }
}

fn gone(kernel: &mut Kernel, sink: &mut Sink, stop: Option<Stop>, error: &Broken) -> Ended {
    tracing::warn!(error = error as &dyn std::error::Error, ?stop, "kernel broken in a run");
    let mut last = |source: Source, bytes: &[u8]| sink.text(source, bytes);
    kernel.peek(&mut last);
    kernel.drain_pipes(&mut last);
    Ended::Gone(None)
}
