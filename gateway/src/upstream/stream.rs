//! A stream of an agent's events, with the channel that it holds.

use super::{UpstreamError, agents::Checked};
use tonic::Streaming;

/// Events of one call. Dropping it ends the call on the agent's side and gives the channel back.
pub(crate) struct Events<T> {
    // Teardown order: the stream ends before its channel goes back.
    stream: Streaming<T>,
    channel: Checked,
}

impl<T> Events<T> {
    /// The events of a call that was just opened, or why it was not. A channel that failed is not used again.
    pub(super) fn opened(
        mut channel: Checked,
        opened: Result<Streaming<T>, UpstreamError>,
    ) -> Result<Self, UpstreamError> {
        match opened {
            Ok(stream) => Ok(Self { stream, channel }),
            Err(error) => {
                if let UpstreamError::Status(status) = &error {
                    channel.judge(status);
                }
                Err(error)
            }
        }
    }

    /// The next event; `None` after the last.
    ///
    /// # Cancel safety
    /// Cancel safe: an event is either returned or still in the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, UpstreamError> {
        match self.stream.message().await {
            Ok(event) => Ok(event),
            Err(status) => {
                self.channel.judge(&status);
                Err(status.into())
            }
        }
    }
}
