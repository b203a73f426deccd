//! What a run puts out: text within limits, displays, errors; from kernel messages to events.

mod limit;
mod mime;
mod sink;
mod utf8;

pub(crate) use sink::Sink;
