//! One run: a request, checked; the events it produces; and how it is carried out on a kernel.

mod drive;
pub(crate) mod event;
mod mailbox;
mod request;

pub(crate) use drive::{Ended, Limits, Stop, drive};
pub(crate) use mailbox::Mailbox;
pub use mailbox::RunStream;
pub(crate) use request::{File, Run};
