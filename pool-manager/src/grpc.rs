//! The gRPC server: wire types end here.

pub(crate) mod convert;
pub(crate) mod service;
pub(crate) mod status;
