//! What happens to capsules, told to whoever listens: a bounded channel, in which a slow listener loses.

use super::Record;
use hearth_proto::id::TeamId;
use time::OffsetDateTime;
use tokio::sync::broadcast;

/// Events that a listener may be behind. A burst of forks is 64.
const BEHIND_MAX: usize = 1024;

/// Something happened.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// One of the names in pool.proto.
    pub(crate) name: &'static str,
    /// None: of a snapshot, which may be older than any capsule that is known.
    pub(crate) capsule: Option<Record>,
    pub(crate) team: TeamId,
    /// Of snapshots.
    pub(crate) template: String,
    pub(crate) reason: String,
    pub(crate) at: OffsetDateTime,
}

/// Tells and listens. Clones share one channel.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    sender: broadcast::Sender<Event>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::Sender::new(BEHIND_MAX) }
    }

    /// Something happened to a capsule. Never waits.
    pub(crate) fn capsule(&self, name: &'static str, record: &Record) {
        self.send(Event {
            name,
            team: record.team,
            template: String::new(),
            reason: record.reason.clone(),
            at: record.times.updated,
            capsule: Some(record.clone()),
        });
    }

    /// The same of anything. Never waits.
    pub(crate) fn send(&self, event: Event) {
        // Nobody may be listening.
        let _heard = self.sender.send(event);
    }

    /// From now on. A listener that is too far behind gets an error.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}
