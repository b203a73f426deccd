//! The body of an answer to a call or request that counts as under way.

use http_body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A body that holds the place of its call among those under way until it is dropped: an answer can be a stream.
pub struct Underway<B> {
    body: B,
    _token: TaskTrackerToken,
}

impl<B> Underway<B> {
    /// Holds `token` as long as the body lives.
    pub fn new(body: B, token: TaskTrackerToken) -> Self {
        Self { body, _token: token }
    }
}

impl<B: Body + Unpin> Body for Underway<B> {
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
