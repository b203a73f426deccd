//! Short names for the wire's events.

pub(crate) use hearth_proto::wire::run::v1::run_event::Event;
use hearth_proto::wire::run::{Chunk, RunEvent};

/// An event on the wire.
pub(crate) fn wire(event: Event) -> RunEvent {
    RunEvent { event: Some(event) }
}

/// Bytes as a chunk.
pub(crate) fn chunk(data: &[u8]) -> Chunk {
    Chunk { data: data.to_vec() }
}
