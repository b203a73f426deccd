//! Listens on the capsule's own address and serves gRPC there.

mod connection;
mod dispatch;

use crate::{
    cgroup::Cgroup,
    config::{ServiceConfig, WhichClock},
    gate::{Gate, Phase},
    grpc::Service,
    process::Processes,
    snapshot::{Guest, clock::Clock, identity::Names},
    user::{self, UserError},
};
use connection::{Connection, Connections};
use dispatch::Dispatch;
use futures::{Stream, stream};
use hearth_runtimes::Runtimes;
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};
use tonic::transport::Server;

/// Calls at the same time on one connection.
const CALLS_MAX: u32 = 256;
/// What a call's stream may hold unread. A connection holds that of all streams an agent makes on one: nobody waits for
/// a service, process or disk that does not take what is sent to it.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const STREAMS: u32 = 128;
/// Largest request: a run's files or an exec's input, inline.
const REQUEST_BYTES_MAX: usize = 32 << 20;
/// Wait before the next try when connections cannot be accepted, for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the service could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// A folder cannot be used.
    #[error("{0} cannot be used")]
    Folder(PathBuf, #[source] io::Error),
    /// Kernels have nobody to run as.
    #[error("the user of the kernels is not known")]
    User(#[from] UserError),
    /// No signal can be listened for.
    #[error("signals cannot be listened for")]
    Signal(#[source] io::Error),
    /// The server ended.
    #[error("the server ended")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves until SIGTERM.
pub async fn serve(config: ServiceConfig, listen: SocketAddr) -> Result<(), ServeError> {
    let mut stop = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    let gate = Arc::new(Gate::new());
    let service = Dispatch::new(build(&config, &gate, listen)?, REQUEST_BYTES_MAX);
    let listener = TcpListener::bind(listen).await.map_err(|error| ServeError::Listen(listen, error))?;
    let address = listener.local_addr().map_err(|error| ServeError::Listen(listen, error))?;
    tracing::info!(%address, "envd serves");
    let server = Server::builder()
        .max_concurrent_streams(CALLS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES * STREAMS)
        .serve_with_incoming(service, incoming(listener, gate));
    tokio::select! {
        served = server => served?,
        // Streams are not waited for: whoever stops envd stops the processes it serves.
        _ = stop.recv() => tracing::info!("envd stops"),
    }
    Ok(())
}

fn build(config: &ServiceConfig, gate: &Arc<Gate>, listen: SocketAddr) -> Result<Service, ServeError> {
    std::fs::create_dir_all(&config.run_dir)
        .map_err(|error| ServeError::Folder(config.run_dir.clone(), error))?;
    let users = Cgroup::at(&config.cgroup);
    let user = user::look_up(&config.code_user)?;
    let runtimes = Runtimes::new(hearth_runtimes::Config {
        run_dir: config.run_dir.clone(),
        python: config.python.clone(),
        user: Some(hearth_runtimes::User {
            uid: user.uid,
            gid: user.gid,
            name: user.name,
            home: user.home.into(),
            groups: user.groups,
        }),
        cgroup: Some(config.cgroup.clone()),
        limits: hearth_runtimes::Limits::default(),
    });
    let clock = match config.clock {
        WhichClock::System => Clock::System,
        WhichClock::Offset => Clock::Offset(AtomicI64::new(0)),
    };
    let processes =
        Processes::new(users.clone()).map_err(|error| ServeError::Folder(config.cgroup.clone(), error))?;
    let guest = Guest::new(clock, users, runtimes, Names::new(&config.run_dir));
    // On localhost every service is looked for anyway.
    let own = Some(listen.ip()).filter(|address| !address.is_unspecified() && !address.is_loopback());
    Ok(Service::new(Arc::clone(gate), guest, processes, own))
}

/// The connections, without end: one that cannot be accepted must not end the service.
fn incoming(listener: TcpListener, gate: Arc<Gate>) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, gate, Connections::new()), |(listener, gate, mut connections)| async {
        let place = connections.place().await;
        let stream = accept(&listener).await;
        // Whoever connects to a prepared capsule does so after a restore; older connections are another life's, and
        // their far ends are gone without a word.
        if gate.phase() == Phase::Prepared {
            connections.close_all();
        }
        let connection = connections.admit(stream, place);
        Some((Ok(connection), (listener, gate, connections)))
    })
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
