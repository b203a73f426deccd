//! The calls of agent.proto that put capsules on disk and bring them back.

use super::service::{AgentService, parse};
use crate::{
    capsule::{
        capture::{Figures, blocking},
        fork::{self, COPIES_MAX},
        handle::Handle,
    },
    error::AgentError,
    snapshot::{
        generation::{Generation, GenerationError},
        manifest::Manifest,
        store::Durability,
    },
};
use hearth_proto::{
    id::{CapsuleId, IdError, SnapshotId},
    wire::agent as wire,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub(super) fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn parse_snapshot(id: &str) -> Result<SnapshotId, AgentError> {
    id.parse()
        .map_err(|error: IdError| AgentError::Invalid { field: "snapshot_id", reason: error.to_string() })
}

impl AgentService {
    pub(super) async fn pause_capsule(&self, id: &str) -> Result<wire::PauseReply, AgentError> {
        let handle = self.capsule(id)?;
        let figures = handle.pause().await?;
        Ok(wire::PauseReply {
            capsule: Some(handle.wire(None)),
            capture: figures.as_ref().map(Figures::wire),
        })
    }

    pub(super) async fn resume_capsule(&self, id: &str) -> Result<wire::ResumeReply, AgentError> {
        let handle = self.capsule(id)?;
        self.not_stopping()?;
        let took = handle.resume().await?;
        Ok(wire::ResumeReply { capsule: Some(handle.wire(None)), total_us: us(took) })
    }

    pub(super) async fn fork_capsule(
        &self,
        request: wire::ForkRequest,
    ) -> Result<wire::ForkReply, AgentError> {
        let start = Instant::now();
        let field = "new_capsule_ids";
        let invalid = |reason: String| AgentError::Invalid { field, reason };
        if !(1..=COPIES_MAX).contains(&request.new_capsule_ids.len()) {
            return Err(invalid(format!("1 to {COPIES_MAX}")));
        }
        let mut ids = Vec::with_capacity(request.new_capsule_ids.len());
        for id in &request.new_capsule_ids {
            let id: CapsuleId = id.parse().map_err(|error: IdError| invalid(error.to_string()))?;
            if ids.contains(&id) {
                return Err(invalid(format!("{id} is there twice")));
            }
            ids.push(id);
        }
        self.not_stopping()?;
        let forked = fork::fork(&self.parts, &self.capsule(&request.capsule_id)?, &ids).await?;
        Ok(wire::ForkReply {
            capsules: forked.copies.iter().map(|copy| copy.wire(None)).collect(),
            capture: forked.figures.as_ref().map(Figures::wire),
            total_us: us(start.elapsed()),
        })
    }

    pub(super) async fn create(
        &self,
        request: wire::CreateSnapshotRequest,
    ) -> Result<wire::CreateSnapshotReply, AgentError> {
        let key = parse_snapshot(&request.snapshot_id)?.to_string();
        let handle = self.capsule(&request.capsule_id)?;
        let (generation, figures) = match self.generation(&key).await {
            Ok(there) if there.snapshot.manifest.capsule == Some(handle.facts.id) => (there, None),
            Ok(_) => return Err(AgentError::Exists(format!("snapshot {key}"))),
            Err(AgentError::Generation(GenerationError::NotFound(_))) => {
                let shot = handle.capture(key, Durability::Synced).await?;
                (shot.generation, shot.figures)
            }
            Err(error) => return Err(error),
        };
        let bytes = generation.snapshot.disk_bytes();
        Ok(wire::CreateSnapshotReply {
            snapshot: Some(snapshot_wire(&generation.snapshot.manifest, bytes)),
            capture: figures.as_ref().map(Figures::wire),
        })
    }

    pub(super) async fn delete(&self, id: &str) -> Result<(), AgentError> {
        let (generations, key) = (self.parts.generations.clone(), parse_snapshot(id)?.to_string());
        blocking(move || Ok(generations.delete(&key).map(drop)?)).await
    }

    pub(super) async fn snapshots(&self) -> Result<wire::ListSnapshotsReply, AgentError> {
        let generations = self.parts.generations.clone();
        let found: Vec<(Manifest, u64)> = blocking(move || generations.list()).await?;
        let snapshots = found.iter().map(|(manifest, bytes)| snapshot_wire(manifest, *bytes)).collect();
        Ok(wire::ListSnapshotsReply { snapshots })
    }

    pub(super) async fn roll_back(
        &self,
        request: wire::RollbackRequest,
    ) -> Result<wire::RollbackReply, AgentError> {
        let handle: Handle = self.capsule(&request.capsule_id)?;
        self.not_stopping()?;
        let generation = self.generation(&parse_snapshot(&request.snapshot_id)?.to_string()).await?;
        if generation.snapshot.manifest.capsule != Some(handle.facts.id) {
            return Err(AgentError::Invalid {
                field: "snapshot_id",
                reason: "it is not a snapshot of this capsule".to_owned(),
            });
        }
        let took = handle.roll_back(generation).await?;
        Ok(wire::RollbackReply { capsule: Some(handle.wire(None)), total_us: us(took) })
    }

    /// Opens a named snapshot.
    pub(super) async fn generation(&self, key: &str) -> Result<Arc<Generation>, AgentError> {
        let (generations, key) = (self.parts.generations.clone(), key.to_owned());
        blocking(move || Ok(generations.get(&key)?)).await
    }

    pub(super) fn not_stopping(&self) -> Result<(), AgentError> {
        if self.parts.shutdown.token().is_cancelled() { Err(AgentError::Stopping) } else { Ok(()) }
    }

    /// Parses a capsule's id and finds it.
    pub(super) fn capsule(&self, id: &str) -> Result<Handle, AgentError> {
        self.parts.registry.get(parse(id)?).ok_or(AgentError::CapsuleNotFound)
    }
}

fn snapshot_wire(manifest: &Manifest, bytes: u64) -> wire::Snapshot {
    wire::Snapshot {
        snapshot_id: manifest.key.clone(),
        capsule_id: manifest.capsule.map(|id| id.to_string()).unwrap_or_default(),
        template: manifest.template.clone(),
        vcpus: manifest.size.vcpus,
        memory_mb: manifest.size.memory_mb,
        created_at_ms: manifest.created_at_ms,
        bytes,
    }
}
