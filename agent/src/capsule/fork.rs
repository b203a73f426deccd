//! Copies of a capsule that run: one capture, then restores.

use super::{
    capture::Figures,
    handle::{Handle, Shot},
    registry::Refused,
    room::Room,
    runner::{self, Wish},
    source::Source,
};
use crate::{
    agent::Parts,
    error::AgentError,
    snapshot::{generation::Generations, store::Durability},
    steps::step_from,
};
use hearth_proto::id::CapsuleId;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// Copies that one call may ask for.
pub const COPIES_MAX: usize = 64;
/// Each restore takes a fraction of a second; all of them together share the host's processors.
const RESTORES_DEADLINE: Duration = Duration::from_secs(120);

/// What a fork gave.
#[derive(Debug)]
pub struct Forked {
    /// The copies, in the order of the ids.
    pub copies: Vec<Handle>,
    /// How the source was captured, if it was.
    pub figures: Option<Figures>,
}

/// Makes running copies of `source`, all or none.
pub async fn fork(parts: &Arc<Parts>, source: &Handle, ids: &[CapsuleId]) -> Result<Forked, AgentError> {
    let start = Instant::now();
    if let Some(copies) = already_there(parts, ids)? {
        return Ok(Forked { copies, figures: None });
    }
    let shot = source.capture(Generations::new_key(), Durability::Transient).await?;
    let mut copies = Vec::with_capacity(ids.len());
    let outcome = match begin(parts, source, &shot, ids, &mut copies) {
        Ok(()) => all_started(&copies).await,
        Err(error) => Err(error),
    };
    discard(parts, &shot).await;
    if let Err(error) = outcome {
        futures::future::join_all(copies.iter().map(Handle::destroy)).await;
        return Err(error);
    }
    step_from("fork", "generation", start);
    Ok(Forked { copies, figures: shot.figures })
}

/// All the copies, when all are there: the call is repeated. An error when some are.
fn already_there(parts: &Parts, ids: &[CapsuleId]) -> Result<Option<Vec<Handle>>, AgentError> {
    let there: Vec<Handle> = ids.iter().filter_map(|id| parts.registry.get(*id)).collect();
    match there.first() {
        None => Ok(None),
        Some(_) if there.len() == ids.len() => Ok(Some(there)),
        Some(handle) => Err(AgentError::Exists(format!("capsule {}", handle.facts.id))),
    }
}

fn begin(
    parts: &Arc<Parts>,
    source: &Handle,
    shot: &Shot,
    ids: &[CapsuleId],
    copies: &mut Vec<Handle>,
) -> Result<(), AgentError> {
    for id in ids.iter().copied() {
        let from = Source::Generation(shot.generation.clone());
        let wish = Wish { id, park: false, settings: shot.settings.clone() };
        let template = source.facts.template.clone();
        let room = Room::look(parts, &from)?;
        match parts.registry.insert(id, Some(&room), || runner::start(parts, from, template, wish)) {
            Ok(handle) => {
                parts.registry.changed(&handle);
                copies.push(handle);
            }
            Err(Refused::Exists(_)) => return Err(AgentError::Exists(format!("capsule {id}"))),
            Err(Refused::Full(refusal)) => return Err(refusal.into()),
        }
    }
    Ok(())
}

async fn all_started(copies: &[Handle]) -> Result<(), AgentError> {
    let started = futures::future::try_join_all(copies.iter().map(Handle::started));
    match timeout(RESTORES_DEADLINE, started).await {
        Ok(started) => started.map(drop),
        Err(_) => Err(AgentError::Ended("the copies took too long and were given up".to_owned())),
    }
}

/// A capture for one call only is not needed any more; a paused capsule's own generation is.
pub(super) async fn discard(parts: &Arc<Parts>, shot: &Shot) {
    if shot.figures.is_none() {
        return;
    }
    let (generations, key) = (parts.generations.clone(), shot.generation.key().to_owned());
    let deleted = super::capture::blocking(move || generations.delete(&key)).await;
    if let Err(error) = deleted {
        tracing::warn!(%error, "a capture is left for the next start's sweep");
    }
}
