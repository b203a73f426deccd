//! Changes of capsules on the scripted host.

use super::Shared;
use hearth_proto::wire::agent::{self, Capsule, CapsuleState};
use tonic::Status;

impl Shared {
    /// The capsule at the beginning of a change, in one of these states.
    async fn change(&self, name: &str, id: &str, states: &[CapsuleState]) -> Result<Capsule, Status> {
        {
            let mut table = self.table();
            table.changes.push(name.to_owned());
            if let Some(status) = &table.refuse_changes {
                return Err(status.clone());
            }
        }
        let mut stalled = self.stalled.subscribe();
        stalled.wait_for(|stalled| !stalled).await.unwrap();
        let capsule = self.table().capsules.get(id).cloned();
        let capsule = capsule.ok_or_else(|| Status::not_found("capsule not found"))?;
        if !states.contains(&capsule.state()) {
            let state = capsule.state().as_str_name();
            return Err(Status::failed_precondition(format!("the capsule is {state}")));
        }
        Ok(capsule)
    }

    fn after(&self, id: &str, state: CapsuleState) -> Option<Capsule> {
        self.set(id, state, "");
        self.table().capsules.get(id).cloned()
    }

    pub(super) async fn pause(&self, request: agent::PauseRequest) -> Result<agent::PauseReply, Status> {
        let id = request.capsule_id;
        self.change("pause", &id, &[CapsuleState::Running, CapsuleState::Paused]).await?;
        self.set(&id, CapsuleState::Pausing, "");
        Ok(agent::PauseReply { capsule: self.after(&id, CapsuleState::Paused), ..Default::default() })
    }

    pub(super) async fn resume(&self, request: agent::ResumeRequest) -> Result<agent::ResumeReply, Status> {
        let id = request.capsule_id;
        self.change("resume", &id, &[CapsuleState::Running, CapsuleState::Paused]).await?;
        self.set(&id, CapsuleState::Resuming, "");
        Ok(agent::ResumeReply { capsule: self.after(&id, CapsuleState::Running), ..Default::default() })
    }

    pub(super) async fn fork(&self, request: agent::ForkRequest) -> Result<agent::ForkReply, Status> {
        let id = request.capsule_id;
        let source = self.change("fork", &id, &[CapsuleState::Running, CapsuleState::Paused]).await?;
        let mut capsules = Vec::new();
        for copy in request.new_capsule_ids {
            let capsule = Capsule { capsule_id: copy.clone(), ..source.clone() };
            self.table().capsules.insert(copy.clone(), capsule);
            capsules.extend(self.after(&copy, CapsuleState::Running));
        }
        Ok(agent::ForkReply { capsules, ..Default::default() })
    }

    pub(super) async fn create_snapshot(
        &self,
        request: agent::CreateSnapshotRequest,
    ) -> Result<agent::CreateSnapshotReply, Status> {
        let id = request.capsule_id;
        let source = self.change("snapshot", &id, &[CapsuleState::Running, CapsuleState::Paused]).await?;
        self.table().snapshots.insert(request.snapshot_id.clone(), id.clone());
        let snapshot = agent::Snapshot {
            snapshot_id: request.snapshot_id,
            capsule_id: id,
            vcpus: source.vcpus,
            memory_mb: source.memory_mb,
            bytes: 7 << 20,
            ..Default::default()
        };
        Ok(agent::CreateSnapshotReply { snapshot: Some(snapshot), ..Default::default() })
    }

    pub(super) async fn delete_snapshot(
        &self,
        request: agent::DeleteSnapshotRequest,
    ) -> Result<agent::DeleteSnapshotReply, Status> {
        self.table().snapshots.remove(&request.snapshot_id);
        Ok(agent::DeleteSnapshotReply {})
    }

    pub(super) async fn rollback(
        &self,
        request: agent::RollbackRequest,
    ) -> Result<agent::RollbackReply, Status> {
        let id = request.capsule_id;
        self.change("rollback", &id, &[CapsuleState::Running, CapsuleState::Paused]).await?;
        if self.table().snapshots.get(&request.snapshot_id) != Some(&id) {
            return Err(Status::not_found("snapshot not found"));
        }
        Ok(agent::RollbackReply { capsule: self.after(&id, CapsuleState::Running), ..Default::default() })
    }

    pub(super) async fn grow_disk(&self, request: agent::GrowDiskRequest) -> Result<Capsule, Status> {
        let id = request.capsule_id;
        let capsule = self.change("grow_disk", &id, &[CapsuleState::Running]).await?;
        if request.disk_mb < capsule.disk_mb {
            return Err(Status::invalid_argument("disk_mb: a disk only grows"));
        }
        let grown = Capsule { disk_mb: request.disk_mb, ..capsule };
        self.table().capsules.insert(id, grown.clone());
        Ok(grown)
    }

    pub(super) async fn set_timeouts(
        &self,
        request: agent::SetTimeoutsRequest,
    ) -> Result<agent::SetTimeoutsReply, Status> {
        let id = request.capsule_id;
        self.change("set_timeouts", &id, &[CapsuleState::Running]).await?;
        let mut table = self.table();
        let timeouts = table.timeouts.entry(id).or_default();
        timeouts.0 = request.idle_timeout_ms.unwrap_or(timeouts.0);
        timeouts.1 = request.idle_action.unwrap_or(timeouts.1);
        Ok(agent::SetTimeoutsReply { idle_timeout_ms: timeouts.0, ..Default::default() })
    }

    pub(super) async fn get_usage(
        &self,
        request: agent::GetUsageRequest,
    ) -> Result<agent::UsageReply, Status> {
        if request.range_sec > 86_400 {
            return Err(Status::invalid_argument("range_sec: at most 24 hours"));
        }
        let capsule = self.table().capsules.get(&request.capsule_id).cloned();
        let capsule = capsule.ok_or_else(|| Status::not_found("capsule not found"))?;
        let point = agent::UsagePoint { at_ms: 1, cpu_us: capsule.cpu_us, ..Default::default() };
        Ok(agent::UsageReply { points: vec![point], interval_ms: 10_000 })
    }
}
