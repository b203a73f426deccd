//! What every request shares: built once at the start, cheap to clone.

use crate::{
    audit::Audit,
    auth::{api_key::Keys, first_key::FirstKeyError, limits::Limits},
    config::Config,
    error::ApiError,
    idempotency::Idempotency,
    store::{Store, StoreError},
    upstream::{agents::Agents, pool::PoolManager},
};
use hearth_service::socket::EndpointError;
use metrics_exporter_prometheus::PrometheusHandle;
use std::{io, net::SocketAddr, ops::Deref, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Shared state. Clones are handles of one thing.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

/// What is behind an [`App`].
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) limits: Limits,
    pub(crate) audit: Audit,
    pub(crate) pool: PoolManager,
    pub(crate) agents: Agents,
    pub(crate) idempotency: Idempotency,
    /// One permit for each request that may be served at the same time.
    pub(crate) permits: Arc<Semaphore>,
    /// One permit for each stream that may be open at the same time: terminals, followed processes, downloads, ports.
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) metrics: PrometheusHandle,
    /// Work that outlives its request, such as giving a capsule back.
    pub(crate) tasks: TaskTracker,
    /// Shutdown has begun.
    pub(crate) stop: CancellationToken,
}

impl App {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// A place for one more stream, for as long as it is held.
    pub(crate) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = self.streams.clone().try_acquire_owned();
        permit.map_err(|_| ApiError::no_capacity("too many streams are open; try again"))
    }

    /// Resolves when shutdown has begun and its grace is over. Cancel safe.
    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
        tokio::time::sleep(Duration::from_millis(self.config.grace_ms)).await;
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Why the gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Settings that cannot be; every fault is one line.
    #[error("the gateway's settings are wrong: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The metrics registry could not be installed.
    #[error("the metrics registry cannot be installed")]
    Metrics(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// pool-manager's endpoint has the wrong form.
    #[error("HEARTH_POOL_MANAGER is wrong")]
    Endpoint(#[source] EndpointError),
    /// Postgres cannot be reached.
    #[error("the database cannot be opened")]
    Database(#[source] StoreError),
    /// The schema could not be brought up to date.
    #[error("the database schema cannot be brought up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// The first API key could not be made or kept.
    #[error("the first API key cannot be prepared")]
    FirstKey(#[source] FirstKeyError),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address from the settings.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
