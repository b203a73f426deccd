//! Pausing, resuming, forking, snapshotting and rolling back capsules of a test's agent.

use crate::agent::TestAgent;
use anyhow::Context;
use hearth_proto::{
    id::{CapsuleId, SnapshotId},
    wire::{
        agent::{self as wire, CapsuleState},
        process::{ExecRequest, Exited, exec_event},
    },
};
use std::collections::HashMap;

impl TestAgent {
    /// Pauses a capsule.
    pub async fn pause(&mut self, id: CapsuleId) -> anyhow::Result<wire::Capture> {
        let reply = self.client.pause(wire::PauseRequest { capsule_id: id.to_string() }).await?.into_inner();
        let capsule = reply.capsule.context("no capsule in the reply")?;
        anyhow::ensure!(capsule.state() == CapsuleState::Paused, "{capsule:?}");
        Ok(reply.capture.unwrap_or_default())
    }

    /// Resumes a capsule; how long that took.
    pub async fn resume(&mut self, id: CapsuleId) -> anyhow::Result<u64> {
        let reply =
            self.client.resume(wire::ResumeRequest { capsule_id: id.to_string() }).await?.into_inner();
        let capsule = reply.capsule.context("no capsule in the reply")?;
        anyhow::ensure!(capsule.state() == CapsuleState::Running, "{capsule:?}");
        Ok(reply.total_us)
    }

    /// Makes running copies.
    pub async fn fork(
        &mut self,
        id: CapsuleId,
        count: usize,
    ) -> anyhow::Result<(Vec<CapsuleId>, wire::ForkReply)> {
        let copies: Vec<CapsuleId> = (0..count).map(|_| CapsuleId::new()).collect();
        let request = wire::ForkRequest {
            capsule_id: id.to_string(),
            new_capsule_ids: copies.iter().map(ToString::to_string).collect(),
        };
        let reply = self.client.fork(request).await?.into_inner();
        Ok((copies, reply))
    }

    /// Names the state of a capsule.
    pub async fn snapshot(
        &mut self,
        id: CapsuleId,
    ) -> anyhow::Result<(SnapshotId, wire::CreateSnapshotReply)> {
        let name = SnapshotId::new();
        let request =
            wire::CreateSnapshotRequest { capsule_id: id.to_string(), snapshot_id: name.to_string() };
        Ok((name, self.client.create_snapshot(request).await?.into_inner()))
    }

    /// Deletes a named snapshot.
    pub async fn delete_snapshot(&mut self, name: SnapshotId) -> anyhow::Result<()> {
        self.client.delete_snapshot(wire::DeleteSnapshotRequest { snapshot_id: name.to_string() }).await?;
        Ok(())
    }

    /// The named snapshots.
    pub async fn snapshots(&mut self) -> anyhow::Result<Vec<String>> {
        let reply = self.client.list_snapshots(wire::ListSnapshotsRequest {}).await?.into_inner();
        Ok(reply.snapshots.into_iter().map(|snapshot| snapshot.snapshot_id).collect())
    }

    /// Rolls a capsule back.
    pub async fn rollback(&mut self, id: CapsuleId, to: SnapshotId) -> anyhow::Result<wire::RollbackReply> {
        let request = wire::RollbackRequest { capsule_id: id.to_string(), snapshot_id: to.to_string() };
        Ok(self.client.rollback(request).await?.into_inner())
    }

    /// Restores a running capsule from a template or a named snapshot.
    pub async fn restore_from(
        &mut self,
        template: &str,
        env: HashMap<String, String>,
    ) -> anyhow::Result<CapsuleId> {
        let id = CapsuleId::new();
        let request = wire::RestoreRequest {
            capsule_id: id.to_string(),
            template: template.to_owned(),
            park: false,
            env,
            network: None,
        };
        self.client.restore(request).await?;
        Ok(id)
    }

    /// Runs a shell script as root and returns what it printed.
    pub async fn shell(&mut self, id: CapsuleId, script: &str) -> anyhow::Result<String> {
        let request = ExecRequest {
            cmd: "/bin/bash".to_owned(),
            args: vec!["-c".to_owned(), script.to_owned()],
            timeout_ms: 60_000,
            ..Default::default()
        };
        let call = wire::ExecCall { capsule_id: id.to_string(), request: Some(request) };
        let mut events = self.client.exec(call).await?.into_inner();
        let (mut output, mut exited) = (Vec::new(), Exited::default());
        while let Some(event) = events.message().await? {
            match event.event.context("an empty event")? {
                exec_event::Event::Stdout(data) | exec_event::Event::Stderr(data) => output.extend(data),
                exec_event::Event::Exited(end) => exited = end,
                exec_event::Event::Started(_) => {}
            }
        }
        let output = String::from_utf8_lossy(&output).into_owned();
        anyhow::ensure!(exited.exit_code == 0, "{script}: {exited:?}: {output}");
        Ok(output)
    }

    /// Runs code that must succeed and returns what it printed.
    pub async fn python(&mut self, id: CapsuleId, code: &str) -> anyhow::Result<String> {
        let ran = self.run(id, code).await?;
        anyhow::ensure!(ran.error.is_none(), "{code}: {ran:?}");
        Ok(ran.stdout.trim_end().to_owned())
    }
}
