//! The body of an answer that holds something for as long as it is sent, such as its call's place among those under way.

use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A body that holds something until it is dropped, by default the place of its call among those under way: an answer can
/// be a stream.
pub struct Underway<B, H = TaskTrackerToken> {
    body: B,
    _held: H,
}

impl<B, H> Underway<B, H> {
    /// Holds `held` as long as the body lives.
    pub fn new(body: B, held: H) -> Self {
        Self { body, _held: held }
    }
}

impl<B: Body + Unpin, H: Unpin> Body for Underway<B, H> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
