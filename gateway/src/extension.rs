//! For programs that embed the gateway: routes, middleware and background work of their own, beside Hearth's.

use crate::{app::App, auth};
use axum::{
    Router,
    response::{IntoResponse, Response},
};
use futures::future::BoxFuture;
use hearth_proto::{
    id::{KeyId, TeamId},
    wire::pool::pool_manager_client::PoolManagerClient,
};
use http::{HeaderMap, Method};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Something that is added to a gateway. All methods have defaults that add nothing.
pub trait Extension: Send + Sync + 'static {
    /// Routes beside Hearth's own; a path that Hearth has is a panic at the start. They are inside the layers that give a
    /// request its id, its log line and its metrics. Who calls is theirs to find out: [`Hearth::caller`].
    fn routes(&self, _hearth: &Hearth) -> Router {
        Router::new()
    }

    /// Middleware around everything, Hearth's routes included.
    fn layer(&self, router: Router, _hearth: &Hearth) -> Router {
        router
    }

    /// Work that runs beside the requests. It must end when `stop` is cancelled; the gateway's stop waits for it.
    fn background(&self, _hearth: Hearth, _stop: CancellationToken) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

/// What an [`Extension`] can use of a running gateway. Clones are handles of one thing.
#[derive(Clone)]
pub struct Hearth {
    app: App,
}

/// Who a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyOwner {
    /// The key.
    pub key: KeyId,
    /// Its team.
    pub team: TeamId,
    /// It is for the whole installation.
    pub platform: bool,
}

impl Hearth {
    pub(crate) fn new(app: &App) -> Self {
        Self { app: app.clone() }
    }

    /// The caller of a request by its API key, counted against the key's limits. `method` and `route` say what is asked:
    /// routes that are not Hearth's own need the scope `platform`, those of the form `/v1/capsules/…` what these need.
    ///
    /// # Errors
    /// The answer that the caller is to get: 401, 403 or 429, in the shape of Hearth's errors.
    #[allow(clippy::result_large_err, reason = "it is the answer")]
    pub async fn caller(
        &self,
        headers: &HeaderMap,
        method: &Method,
        route: &str,
    ) -> Result<KeyOwner, Response> {
        let caller = match auth::sent(&self.app, headers, method, route).await {
            Ok(Some(caller)) => caller,
            Ok(None) => return Err(auth::missing().into_response()),
            Err(error) => return Err(error.into_response()),
        };
        let platform = caller.scopes.has(auth::scopes::KeyScope::Platform);
        Ok(KeyOwner { key: caller.key, team: caller.team, platform })
    }

    /// The gateway's database. Tables of Hearth's are Hearth's to write.
    pub fn database(&self) -> &PgPool {
        self.app.store.pool()
    }

    /// pool-manager, with everything that it can do; it does not ask who calls.
    pub fn pool_manager(&self) -> PoolManagerClient<Channel> {
        self.app.pool.client()
    }
}

impl std::fmt::Debug for Hearth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hearth").finish_non_exhaustive()
    }
}
