//! Start, serve, drain: the listener and its connections.

mod border;

use crate::{
    app::{App, GatewayError, Shared},
    audit::{self, Audit},
    auth::{
        api_key::{self, Keys},
        first_key,
        limits::Limits,
    },
    config::Config,
    extension::{Extension, Hearth},
    gauges,
    idempotency::Idempotency,
    router,
    store::Store,
    upstream::{agents::Agents, pool::PoolManager},
};
use axum::Router;
use border::Border;
use hearth_service::{shutdown::Shutdown, underway::Underway};
use hyper::{
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::task::TaskTracker;

/// From a connection's start, or the answer before, to the end of a request's head. It bounds idle connections too, so
/// it is longer than clients keep them.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// After a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// For telling those that still wait that the grace is over, and for what is no request yet.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The public HTTP API.
pub struct Gateway;

/// A gateway that serves. It stops with the [`Shutdown`] that it was started with.
#[derive(Debug, Clone)]
pub struct Running {
    address: SocketAddr,
    key_file: PathBuf,
}

impl Running {
    /// The address that was bound: also the port when the settings said 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the first API key of this data folder is kept. The file is missing when an operator took it away.
    pub fn key_file(&self) -> &Path {
        &self.key_file
    }
}

/// A gateway that is about to start.
pub struct Builder {
    config: Config,
    extensions: Vec<Box<dyn Extension>>,
}

impl Gateway {
    /// A gateway that can be given extensions before it starts.
    pub fn builder(config: Config) -> Builder {
        Builder { config, extensions: Vec::new() }
    }

    /// Starts a gateway without extensions; see [`Builder::start`].
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start(config: Config, shutdown: Shutdown) -> Result<Running, GatewayError> {
        Self::builder(config).start(shutdown).await
    }
}

impl Builder {
    /// Adds an extension. The last one's middleware is the outermost.
    #[must_use]
    pub fn extension(mut self, extension: impl Extension) -> Self {
        self.extensions.push(Box::new(extension));
        self
    }

    /// Brings the schema up to date, makes the first API key when there is none, binds the address and serves until
    /// `shutdown` begins; requests under way then have the settings' grace. All tasks run on `shutdown`'s tracker.
    ///
    /// pool-manager need not be there yet: `/ready` says so until it is.
    ///
    /// # Errors
    /// Wrong settings (all faults at once), no database, a database of a newer Hearth, no usable key file, or an address
    /// that cannot be bound.
    pub async fn start(self, shutdown: Shutdown) -> Result<Running, GatewayError> {
        let Self { config, extensions } = self;
        let faults = config.faults();
        if !faults.is_empty() {
            return Err(GatewayError::Config(faults));
        }
        let metrics =
            hearth_service::metrics::install().map_err(|error| GatewayError::Metrics(Box::new(error)))?;
        gauges::describe();
        let pool = PoolManager::new(&config.pool_manager()).map_err(GatewayError::Endpoint)?;
        let store = Store::open(&config).await.map_err(GatewayError::Database)?;
        hearth_migrations::run(store.pool()).await.map_err(GatewayError::Migrate)?;
        first_key::ensure(&store, &config.data_dir).await.map_err(GatewayError::FirstKey)?;
        let listen = |source| GatewayError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let running = Running {
            address: listener.local_addr().map_err(listen)?,
            key_file: first_key::path(&config.data_dir),
        };
        let (audit, rows) = Audit::new();
        let app = App::new(Shared {
            store,
            keys: Keys::default(),
            limits: Limits::new(&config),
            audit,
            pool,
            agents: Agents::new(config.agent_channels),
            idempotency: Idempotency::default(),
            permits: Arc::new(Semaphore::new(config.max_requests)),
            streams: Arc::new(Semaphore::new(config.max_streams)),
            metrics,
            tasks: shutdown.tasks().clone(),
            stop: shutdown.token(),
            config,
        });
        let tasks = shutdown.tasks();
        tasks.spawn(api_key::flush_uses(app.clone(), shutdown.token()));
        tasks.spawn(audit::write(app.clone(), rows, shutdown.token()));
        tasks.spawn(gauges::run(app.clone(), shutdown.token()));
        let hearth = Hearth::new(&app);
        let router = router::routes(&app, &extensions);
        for extension in &extensions {
            if let Some(work) = extension.background(hearth.clone(), shutdown.token()) {
                tasks.spawn(work);
            }
        }
        tasks.spawn(accept(app, router, listener, shutdown.clone()));
        tracing::info!(http.address = %running.address, "the gateway listens");
        Ok(running)
    }
}

/// Accepts connections until shutdown begins.
async fn accept(app: App, router: Router, listener: TcpListener, shutdown: Shutdown) {
    let grace = Duration::from_millis(app.config.grace_ms);
    let connections = Arc::new(Semaphore::new(app.config.max_connections));
    loop {
        tokio::select! {
            // Stop first: no new connection once shutdown has begun.
            biased;
            () = shutdown.begun() => return,
            accepted = accept_one(&listener, &connections) => match accepted {
                Ok((stream, permit)) => {
                    let connection = serve(stream, router.clone(), shutdown.clone(), grace);
                    shutdown.tasks().spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// # Cancel safety
/// Cancel safe: `accept` is, and a permit that was taken is given back.
async fn accept_one(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Answers are small and complete: waiting for more to send would only cost 40 ms.
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

/// Serves one connection. At shutdown one without a request is closed at once, a busy one after its request or the
/// grace. What has begun and is no request yet, such as half a head, gets [`LAST_WORDS`].
async fn serve(stream: TcpStream, router: Router, shutdown: Shutdown, grace: Duration) {
    let (border, blocked) = Border::new(stream);
    let (requests, router) = (TaskTracker::new(), TowerToHyperService::new(router));
    let counter = requests.clone();
    let service = service_fn(move |request| {
        let (token, answer) = (counter.token(), router.call(request));
        async move { Ok::<_, Infallible>(answer.await?.map(|body| Underway::new(body, token))) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(border), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        // A connection that is done needs no shutdown.
        biased;
        served = connection.as_mut() => served,
        () = shutdown.begun() => {
            connection.as_mut().graceful_shutdown();
            let end = Instant::now() + grace;
            loop {
                match tokio::time::timeout(LAST_WORDS, connection.as_mut()).await {
                    Ok(served) => break served,
                    Err(_) if requests.is_empty() && !blocked.get() => return,
                    Err(_) if end <= Instant::now() => {
                        tracing::warn!("a request was still under way after the grace period and is cut off");
                        return;
                    }
                    Err(_) => {}
                }
            }
        }
    };
    if let Err(error) = served {
        // Clients break connections all the time.
        tracing::debug!(%error, "a connection ended with an error");
    }
}
