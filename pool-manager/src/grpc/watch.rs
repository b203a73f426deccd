//! The stream of capsule events: bounded, and ended for a reader that is too slow.

use super::convert;
use crate::{capsule::events::Event, metrics};
use hearth_proto::{id::TeamId, wire::pool};
use hearth_service::shutdown::Shutdown;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Events on their way to one reader, beside the channel's own.
const AHEAD_MAX: usize = 16;

pub(super) type Events = ReceiverStream<Result<pool::CapsuleEvent, Status>>;

/// Events of one team, or of all, until the reader leaves, is too slow, or the service stops.
pub(super) fn stream(
    events: broadcast::Receiver<Event>,
    team: Option<TeamId>,
    shutdown: &Shutdown,
) -> Events {
    let (sender, receiver) = mpsc::channel(AHEAD_MAX);
    let stop = shutdown.token();
    shutdown.tasks().spawn(async move {
        let left = sender.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = left.closed() => {}
            () = pass_on(events, team, sender) => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn pass_on(
    mut events: broadcast::Receiver<Event>,
    team: Option<TeamId>,
    sender: mpsc::Sender<Result<pool::CapsuleEvent, Status>>,
) {
    loop {
        let item = match events.recv().await {
            Ok(event) if team.is_none_or(|team| event.team == team) => Ok(convert::event(event)),
            Ok(_) => continue,
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                metrics::watcher_lost();
                Err(Status::resource_exhausted(format!("too slow: {lost} events are lost; read again")))
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let over = item.is_err();
        if sender.send(item).await.is_err() || over {
            return;
        }
    }
}
