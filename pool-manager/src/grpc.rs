//! The gRPC server: wire types end here.

mod convert;
mod requests;
pub(crate) mod service;
mod status;
mod watch;
