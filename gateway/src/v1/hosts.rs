//! `GET /v1/hosts`: the machines that run capsules.

use crate::{app::App, auth::Caller, error::ApiError, middleware::Scope, v1::capsule_body::instant};
use axum::{Extension, Json, extract::State};
use hearth_proto::wire::pool::{HostRecord, ListHostsRequest};
use serde::Serialize;

/// A machine with an agent.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct HostBody {
    id: String,
    /// online, unreachable or offline.
    status: String,
    /// qemu or firecracker.
    engine: String,
    /// tcg or kvm.
    accelerator: String,
    cpu_cores: u32,
    memory_mb: u64,
    created_at: Option<String>,
    last_heartbeat_at: Option<String>,
    /// Capsules on it that have not ended.
    capsules: u32,
}

impl From<HostRecord> for HostBody {
    fn from(record: HostRecord) -> Self {
        Self {
            id: record.host_id,
            status: record.status,
            engine: record.engine,
            accelerator: record.accelerator,
            cpu_cores: record.cpus,
            memory_mb: record.memory_mb,
            created_at: instant(record.registered_at_ms),
            last_heartbeat_at: instant(record.last_seen_ms),
            capsules: record.capsules,
        }
    }
}

/// All hosts.
pub(crate) async fn list(
    State(app): State<App>,
    _: Caller,
    Extension(scope): Extension<Scope>,
) -> Result<Json<Vec<HostBody>>, ApiError> {
    let hosts = app.pool.list_hosts(ListHostsRequest {}, &scope.request_id).await?.hosts;
    Ok(Json(hosts.into_iter().map(HostBody::from).collect()))
}
