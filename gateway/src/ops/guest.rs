//! Where a caller's capsule is, and the calls into its guest.

use crate::{
    app::App, auth::Caller, error::ApiError, middleware::Scope, ops::capsules::unknown_capsule,
    upstream::guest::Guest,
};
use hearth_proto::{id::CapsuleId, wire::pool::HostRef};
use std::sync::Arc;

/// A running capsule of the caller, and its host.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) capsule: CapsuleId,
    pub(crate) host: HostRef,
    request_id: Arc<str>,
}

impl Place {
    /// Finds a capsule of the caller; one that is paused may be resumed for it.
    pub(crate) async fn of(
        app: &App,
        scope: &Scope,
        caller: Caller,
        capsule: CapsuleId,
    ) -> Result<Self, ApiError> {
        let host = app.pool.locate(caller.team, capsule, &scope.request_id).await.map_err(unknown_capsule)?;
        Ok(Self { capsule, host, request_id: scope.request_id.clone() })
    }

    /// Calls into its guest.
    pub(crate) fn guest<'a>(&'a self, app: &'a App) -> Guest<'a> {
        Guest::new(&app.agents, self.host.clone(), self.capsule, &self.request_id)
    }
}
