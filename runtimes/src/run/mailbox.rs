//! The events of one run on their way to the caller.
//!
//! The writer never waits: a slow or absent reader must not stop a kernel's pipes from being drained. The
//! content is bounded instead, by the output limits of the run, and neighbouring chunks are joined.

use super::event::{self, Event};
use crate::kernel::Source;
use futures::Stream;
use hearth_proto::wire::run::{End, RunEvent};
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};
use tokio::sync::Notify;

/// A chunk that is joined with the next ones does not grow beyond this.
const CHUNK_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    ended: bool,
    abandoned: bool,
    reader: Option<Waker>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    abandoned: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct Mailbox(Arc<Shared>);

/// The events of a run, in order. The last is `End`, which comes exactly once. Dropping the stream before
/// that interrupts the run.
#[derive(Debug)]
pub struct RunStream(Arc<Shared>);

impl Mailbox {
    /// Both ends.
    pub(crate) fn new() -> (Self, RunStream) {
        let shared = Arc::new(Shared::default());
        (Self(shared.clone()), RunStream(shared))
    }

    /// Text of a stream; joined with the text before it.
    pub(super) fn chunk(&self, source: Source, data: &[u8]) {
        let mut state = self.0.lock();
        if state.abandoned || state.ended {
            return;
        }
        match (state.events.back_mut(), source) {
            (Some(Event::Stdout(chunk)), Source::Stdout) | (Some(Event::Stderr(chunk)), Source::Stderr)
                if chunk.data.len() + data.len() <= CHUNK_BYTES_MAX =>
            {
                chunk.data.extend_from_slice(data);
            }
            (_, Source::Stdout) => state.events.push_back(Event::Stdout(event::chunk(data))),
            (_, Source::Stderr) => state.events.push_back(Event::Stderr(event::chunk(data))),
        }
        wake(state);
    }

    /// Text of a stream.
    pub(crate) fn text(&self, source: Source, data: &[u8]) {
        for piece in data.chunks(CHUNK_BYTES_MAX) {
            self.chunk(source, piece);
        }
    }

    /// Any other event than text and end.
    pub(crate) fn push(&self, event: Event) {
        let mut state = self.0.lock();
        if !state.abandoned && !state.ended {
            state.events.push_back(event);
            wake(state);
        }
    }

    /// The end. Nothing after it is delivered.
    pub(crate) fn end(self, end: End) {
        self.push(Event::End(end));
        self.0.lock().ended = true;
    }

    /// Has the reader gone?
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.lock().abandoned
    }

    /// Completes when the reader goes before the end.
    pub(crate) async fn abandoned(&self) {
        self.0.abandoned.notified().await;
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // A run that is dropped unfinished (the context's task has ended) still ends for its reader.
        let mut state = self.0.lock();
        if !state.ended {
            state.ended = true;
            let status = hearth_proto::wire::run::RunStatus::Interrupted.into();
            state.events.push_back(Event::End(End { status, ..End::default() }));
            wake(state);
        }
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let reader = state.reader.take();
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
}

impl Stream for RunStream {
    type Item = RunEvent;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<RunEvent>> {
        let mut state = self.0.lock();
        match state.events.pop_front() {
            Some(event) => Poll::Ready(Some(event::wire(event))),
            None if state.ended => Poll::Ready(None),
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for RunStream {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.abandoned = true;
        state.events.clear();
        drop(state);
        self.0.abandoned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[tokio::test]
    async fn neighbouring_text_is_joined_and_end_comes_last_and_once() {
        let (mailbox, stream) = Mailbox::new();
        mailbox.text(Source::Stdout, b"a");
        mailbox.text(Source::Stdout, b"b");
        mailbox.text(Source::Stderr, b"c");
        mailbox.end(End { execution_count: 4, ..End::default() });
        let events: Vec<_> = stream.map(|event| event.event.unwrap()).collect().await;
        assert_eq!(events.len(), 3);
        assert!(matches!(&events[0], Event::Stdout(chunk) if chunk.data == b"ab"));
        assert!(matches!(&events[1], Event::Stderr(chunk) if chunk.data == b"c"));
        assert!(matches!(&events[2], Event::End(end) if end.execution_count == 4));
    }

    #[tokio::test]
    async fn a_run_that_is_dropped_still_ends() {
        let (mailbox, stream) = Mailbox::new();
        drop(mailbox);
        assert_eq!(stream.count().await, 1);
    }

    #[tokio::test]
    async fn an_abandoned_mailbox_says_so_and_keeps_nothing() {
        let (mailbox, stream) = Mailbox::new();
        mailbox.text(Source::Stdout, b"a");
        drop(stream);
        mailbox.abandoned().await;
        mailbox.text(Source::Stdout, b"a");
        assert!(mailbox.is_abandoned());
        assert!(mailbox.0.lock().events.is_empty());
    }
}
