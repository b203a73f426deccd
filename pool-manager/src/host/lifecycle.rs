//! Typed calls to one agent about capsules that are somebody's: to disk and back, copies, snapshots, disks, timeouts.

use super::client::{Agent, AgentError, alive, call};
use crate::{
    capsule::{Disk, settings::Timeouts},
    error::Refused,
};
use hearth_proto::{
    id::{CapsuleId, SnapshotId},
    wire::agent,
};
use hearth_service::telemetry;
use std::time::Duration;

/// A pause or a capture takes time by what was written; this is a gigabyte on a slow disk.
const CAPTURE: Duration = Duration::from_secs(120);
/// A restore takes 0.1 s; this is a host that swaps.
const RESUME: Duration = Duration::from_secs(60);
/// Growing a file system, changing timeouts.
const CHANGE: Duration = Duration::from_secs(30);
const READ: Duration = Duration::from_secs(10);

/// A named snapshot that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Captured {
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u64,
    pub(crate) size_bytes: u64,
}

impl Agent {
    /// Puts a capsule on disk. Idempotent. Its disk then.
    pub(crate) async fn pause(&self, id: CapsuleId) -> Result<Disk, AgentError> {
        let mut client = self.client.clone();
        let request = agent::PauseRequest { capsule_id: id.to_string() };
        disk("Pause", call("Pause", CAPTURE, client.pause(request)).await?.capsule)
    }

    /// Brings a capsule back from disk. Idempotent.
    pub(crate) async fn resume(&self, id: CapsuleId) -> Result<Disk, AgentError> {
        let mut client = self.client.clone();
        let request = agent::ResumeRequest { capsule_id: id.to_string() };
        disk("Resume", call("Resume", RESUME, client.resume(request)).await?.capsule)
    }

    /// Makes running copies. All or none, idempotent by the ids.
    pub(crate) async fn fork(&self, id: CapsuleId, copies: &[CapsuleId]) -> Result<(), AgentError> {
        let mut client = self.client.clone();
        let new_capsule_ids = copies.iter().map(ToString::to_string).collect();
        let request = agent::ForkRequest { capsule_id: id.to_string(), new_capsule_ids };
        let reply = call("Fork", CAPTURE, client.fork(request)).await?;
        reply.capsules.into_iter().try_for_each(|copy| alive("Fork", copy))
    }

    /// Keeps a capsule's state under an id. Idempotent by it.
    pub(crate) async fn capture(&self, id: CapsuleId, snapshot: SnapshotId) -> Result<Captured, AgentError> {
        const CALL: &str = "CreateSnapshot";
        let mut client = self.client.clone();
        let request =
            agent::CreateSnapshotRequest { capsule_id: id.to_string(), snapshot_id: snapshot.to_string() };
        let taken = call(CALL, CAPTURE, client.create_snapshot(request)).await?.snapshot;
        let taken = taken.ok_or_else(|| incomplete(CALL))?;
        Ok(Captured { vcpus: taken.vcpus, memory_mb: taken.memory_mb, size_bytes: taken.bytes })
    }

    /// Deletes a named snapshot. Succeeds for those that are gone.
    pub(crate) async fn delete_snapshot(&self, snapshot: SnapshotId) -> Result<(), AgentError> {
        let mut client = self.client.clone();
        let request = agent::DeleteSnapshotRequest { snapshot_id: snapshot.to_string() };
        call("DeleteSnapshot", CHANGE, client.delete_snapshot(request)).await?;
        Ok(())
    }

    /// Makes a capsule one of its own snapshots again.
    pub(crate) async fn roll_back(&self, id: CapsuleId, snapshot: SnapshotId) -> Result<Disk, AgentError> {
        let mut client = self.client.clone();
        let request =
            agent::RollbackRequest { capsule_id: id.to_string(), snapshot_id: snapshot.to_string() };
        disk("Rollback", call("Rollback", RESUME, client.rollback(request)).await?.capsule)
    }

    /// Grows the disk of a running capsule.
    pub(crate) async fn grow_disk(&self, id: CapsuleId, disk_mb: u64) -> Result<Disk, AgentError> {
        let mut client = self.client.clone();
        let request = agent::GrowDiskRequest { capsule_id: id.to_string(), disk_mb };
        disk("GrowDisk", Some(call("GrowDisk", CHANGE, client.grow_disk(request)).await?))
    }

    /// Counts as use of a running capsule and gives it its whole time again; with other timeouts where there are some.
    pub(crate) async fn set_timeouts(
        &self,
        id: CapsuleId,
        timeouts: Option<Timeouts>,
    ) -> Result<(), AgentError> {
        let mut client = self.client.clone();
        let request = agent::SetTimeoutsRequest {
            capsule_id: id.to_string(),
            idle_timeout_ms: timeouts.map(Timeouts::idle_ms),
            idle_action: timeouts.map(|timeouts| timeouts.action.wire().into()),
            timeout_ms: None,
            timeout_action: None,
        };
        call("SetTimeouts", CHANGE, client.set_timeouts(request)).await?;
        Ok(())
    }

    /// What a capsule used over time; also a paused one.
    pub(crate) async fn usage(&self, id: CapsuleId, range_sec: u64) -> Result<agent::UsageReply, AgentError> {
        let mut client = self.client.clone();
        let request = agent::GetUsageRequest { capsule_id: id.to_string(), range_sec };
        call("GetUsage", READ, client.get_usage(request)).await
    }
}

fn incomplete(call: &'static str) -> AgentError {
    AgentError::Failed { call, message: "the answer is not complete".to_owned() }
}

fn disk(call: &'static str, capsule: Option<agent::Capsule>) -> Result<Disk, AgentError> {
    let capsule = capsule.ok_or_else(|| incomplete(call))?;
    let disk = Disk { size_mb: capsule.disk_mb, used_mb: capsule.disk_used_mb };
    alive(call, capsule)?;
    Ok(disk)
}

impl AgentError {
    /// What a caller is told who wanted to `what`; the whole of it is logged here.
    pub(crate) fn refused(&self, what: &str) -> Refused {
        match self {
            Self::NoCapacity(message) => Refused::NoCapacity(message.clone()),
            Self::Unknown(_) => Refused::WrongState("the capsule's host does not know it".to_owned()),
            Self::Denied(message) => Refused::WrongState(message.clone()),
            Self::Invalid(message) => Refused::Invalid(message.clone()),
            Self::Away(_) => {
                tracing::warn!(what, error = telemetry::chain(self), "the host could not be asked");
                Refused::Away("the host is away, or the capsule ended meanwhile; try again".to_owned())
            }
            Self::Late { .. } => {
                tracing::warn!(what, error = %self, "the host was too slow");
                Refused::Late("the host did not answer in time".to_owned())
            }
            Self::Failed { .. } | Self::Answer(_) => {
                tracing::warn!(what, error = telemetry::chain(self), "the host failed");
                Refused::Host(format!("the host could not {what}"))
            }
        }
    }

    /// Whether nobody can say whether it was done.
    pub(crate) fn is_open(&self) -> bool {
        match self {
            Self::Away(_) | Self::Late { .. } | Self::Answer(_) => true,
            Self::NoCapacity(_)
            | Self::Unknown(_)
            | Self::Denied(_)
            | Self::Invalid(_)
            | Self::Failed { .. } => false,
        }
    }
}
