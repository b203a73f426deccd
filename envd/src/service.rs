//! The service role: one thread for everything that waits, a few more for what blocks.

use crate::{
    cmdline::{CmdlineError, Network},
    config::ServiceConfig,
    server::{self, ServeError},
};
use hearth_proto::metadata::ENVD_PORT;
use nix::sys::signal::SigSet;
use std::{io, net::SocketAddr, time::Duration};

/// Threads for blocking calls (files, freeze): few at a time, and gone when idle, so that none is in a snapshot to end
/// after its restore.
const BLOCKING_THREADS_MAX: usize = 4;
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_millis(20);
/// How long the end waits for blocking calls.
const END_LIMIT: Duration = Duration::from_millis(500);

/// Why the service ended.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The kernel's command line cannot be read.
    #[error("/proc/cmdline cannot be read")]
    ReadCmdline(#[source] io::Error),
    /// The kernel's command line names no address.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The runtime or the signal mask cannot be set up.
    #[error("the runtime cannot be set up")]
    Runtime(#[source] io::Error),
    /// The server could not start or go on.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves until SIGTERM.
pub fn run(config: ServiceConfig) -> Result<(), ServiceError> {
    // PID 1 blocks the signals it waits for, and children inherit that.
    SigSet::empty().thread_set_mask().map_err(|errno| ServiceError::Runtime(errno.into()))?;
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    let listen = match config.listen {
        Some(listen) => listen,
        None => own_address()?,
    };
    // A capsule has one processor as a rule, and its work is to wait: more threads would only pass it around.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .build()
        .map_err(ServiceError::Runtime)?;
    let served = runtime.block_on(server::serve(config, listen));
    runtime.shutdown_timeout(END_LIMIT);
    Ok(served?)
}

/// The capsule's address alone: nothing else in the guest or beside it is meant to be listened on.
fn own_address() -> Result<SocketAddr, ServiceError> {
    let cmdline = std::fs::read_to_string("/proc/cmdline").map_err(ServiceError::ReadCmdline)?;
    Ok((Network::parse(&cmdline)?.address, ENVD_PORT).into())
}
