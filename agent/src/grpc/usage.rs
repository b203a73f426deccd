//! The calls of agent.proto about what capsules use, for how long they may, and what they write to their consoles.

use super::service::AgentService;
use crate::{
    capsule::{capture::blocking, timeouts::Timeouts},
    error::AgentError,
    template::build::now_ms,
    usage::history::Point,
};
use hearth_proto::wire::agent as wire;

const RANGE_MAX_SEC: u64 = 24 * 3600;
const RANGE_DEFAULT_SEC: u64 = 600;

/// Timeouts from a request's fields.
pub(super) fn timeouts(idle: (u64, i32), lifetime: (u64, i32)) -> Result<Timeouts, AgentError> {
    Timeouts::new(idle, lifetime).map_err(|(field, reason)| AgentError::Invalid { field, reason })
}

impl AgentService {
    pub(super) fn usage_of(&self, request: &wire::GetUsageRequest) -> Result<wire::UsageReply, AgentError> {
        let handle = self.capsule(&request.capsule_id)?;
        let range_sec = match request.range_sec {
            0 => RANGE_DEFAULT_SEC,
            range if range <= RANGE_MAX_SEC => range,
            range => {
                let reason = format!("{range} is more than {RANGE_MAX_SEC}: a day is kept");
                return Err(AgentError::Invalid { field: "range_sec", reason });
            }
        };
        let (points, tier) = handle.meter.points(now_ms(), range_sec * 1000, handle.facts.vcpus);
        Ok(wire::UsageReply {
            points: points.iter().map(point_wire).collect(),
            interval_ms: tier.interval_ms,
        })
    }

    pub(super) async fn console(&self, id: &str) -> Result<wire::GetConsoleReply, AgentError> {
        let console = self.capsule(id)?.console;
        let read = blocking(move || {
            console.read().map_err(|source| AgentError::File { what: "the console", source })
        });
        Ok(wire::GetConsoleReply { console: read.await? })
    }

    pub(super) async fn change_timeouts(
        &self,
        request: wire::SetTimeoutsRequest,
    ) -> Result<wire::SetTimeoutsReply, AgentError> {
        let handle = self.capsule(&request.capsule_id)?;
        let wire::SetTimeoutsRequest { idle_timeout_ms, timeout_ms, timeout_action, idle_action, .. } =
            request;
        let named = timeouts(
            (idle_timeout_ms.unwrap_or_default(), idle_action.unwrap_or_default()),
            (timeout_ms.unwrap_or_default(), timeout_action.unwrap_or_default()),
        )?;
        let now = handle
            .set_timeouts(move |before| Timeouts {
                idle_ms: idle_timeout_ms.unwrap_or(before.idle_ms),
                idle_action: if idle_action.is_some() { named.idle_action } else { before.idle_action },
                lifetime_ms: timeout_ms.unwrap_or(before.lifetime_ms),
                action: if timeout_action.is_some() { named.action } else { before.action },
                lived_ms: 0,
            })
            .await?;
        Ok(wire::SetTimeoutsReply {
            idle_timeout_ms: now.idle_ms,
            timeout_ms: now.lifetime_ms,
            timeout_action: now.action.wire().into(),
            idle_action: now.idle_action.wire().into(),
        })
    }
}

fn point_wire(point: &Point) -> wire::UsagePoint {
    let sample = &point.sample;
    wire::UsagePoint {
        at_ms: sample.at_ms,
        cpu_pct: point.cpu_pct,
        private_bytes: sample.private_bytes,
        shared_bytes: sample.shared_bytes,
        disk_bytes: sample.disk_bytes,
        cpu_us: sample.cpu_us,
        received_bytes: sample.received_bytes,
        sent_bytes: sample.sent_bytes,
    }
}
