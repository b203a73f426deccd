//! Recording a template's working set: throw-away restores into an empty image, and what they left in it.

use super::{Progress, Template, Templates};
use crate::{
    capsule::{restore::restore, runner::Wish, settings::Settings, source::Source},
    error::AgentError,
    memory::{
        image::Image,
        layer::{Layer, LayerError},
        working_set::{self, Chunks, WorkingSetError, fit},
    },
    snapshot::store::{Snapshot, name},
};
use hearth_proto::id::CapsuleId;
use std::{fs::File, path::PathBuf, sync::Arc};
use tokio::{sync::watch, task::spawn_blocking};

/// Restores that are watched. The second shows how well the first predicts.
const RESTORES: usize = 2;

/// Why no working set was recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A throw-away restore failed.
    #[error("a restore that was to be watched failed: {0}")]
    Restore(#[from] AgentError),
    /// What it touched could not be stored.
    #[error(transparent)]
    WorkingSet(#[from] WorkingSetError),
    /// A step's thread died.
    #[error("a step ended without an answer")]
    Thread(#[from] tokio::task::JoinError),
}

/// Where a template's working set is, or will be.
#[derive(Debug)]
pub struct WorkingSet {
    path: PathBuf,
}

impl WorkingSet {
    /// The place of a snapshot's.
    pub fn of(snapshot: &Snapshot) -> Result<Self, LayerError> {
        let memory = snapshot.path(name::MEMORY);
        let layer = Layer::open(File::open(&memory)?)?;
        Ok(Self { path: working_set::path(&memory, &layer) })
    }
}

impl Templates {
    /// Fills the template's working set into an image that is about to be used, beside the restore that uses it.
    pub fn prefetch(&self, template: &Template, image: Arc<Image>) {
        let path = template.working_set.path.clone();
        if !self.config.prefetch || !path.exists() {
            return;
        }
        // It holds the image open: a stopping agent must not unmount below it.
        self.tasks.spawn_blocking(move || match working_set::prefetch(&path, &image) {
            Ok(done) => {
                metrics::counter!("hearth_agent_prefetched_pages_total", "result" => "filled")
                    .increment(done.pages);
                metrics::counter!("hearth_agent_prefetched_pages_total", "result" => "late")
                    .increment(done.present);
            }
            Err(error) => {
                tracing::warn!(%error, "the working set could not be filled in; faults are served as they come")
            }
        });
    }
}

/// Records the working set of `template` unless there is one.
pub async fn ensure(
    templates: &Arc<Templates>,
    template: &Arc<Template>,
    progress: &watch::Sender<Progress>,
) -> Result<(), RecordError> {
    if let Ok(recorded) = std::fs::metadata(&template.working_set.path) {
        size(template, recorded.len());
        return Ok(());
    }
    progress.send_replace(Progress::Line("watching which memory restored capsules touch".to_owned()));
    let key = &template.snapshot.manifest.key;
    let mut set = Chunks::new();
    for restore in 0..RESTORES {
        let touched = touched(templates, template).await?;
        if 0 < restore {
            let fit = fit(&set, &touched);
            tracing::info!(chunks = set.len(), hits = fit.hits, waste = fit.waste, "working set watched");
            let name = &template.snapshot.manifest.template;
            metrics::gauge!("hearth_agent_working_set_hit_ratio", "template" => name.clone()).set(fit.hits);
            metrics::gauge!("hearth_agent_working_set_waste_ratio", "template" => name.clone())
                .set(fit.waste);
        }
        set.extend(touched);
    }
    // What was restored from the watched images is gone; capsules begin with an empty one.
    templates.images.evict(key);
    templates.parking.clear(key);
    let (memory, path) = (template.snapshot.path(name::MEMORY), template.working_set.path.clone());
    spawn_blocking(move || {
        let layer = Layer::open(File::open(memory).map_err(WorkingSetError::Io)?)?;
        working_set::write(&layer, &set, &path)?;
        Ok::<_, WorkingSetError>(std::fs::metadata(path)?.len())
    })
    .await?
    .map(|stored| size(template, stored))?;
    Ok(())
}

/// Says how large a template's working set is, as it is stored: compressed.
fn size(template: &Template, bytes: u64) {
    let name = template.snapshot.manifest.template.clone();
    metrics::gauge!("hearth_agent_working_set_bytes", "template" => name).set(bytes as f64);
}

/// Restores one capsule into an empty image, as for the pool; returns the chunks that this filled.
async fn touched(templates: &Arc<Templates>, template: &Arc<Template>) -> Result<Chunks, RecordError> {
    let key = &template.snapshot.manifest.key;
    templates.images.evict(key);
    templates.parking.clear(key);
    let wish = Wish { id: CapsuleId::new(), park: true, settings: Settings::default() };
    let life = restore(templates, &Source::Template(template.clone()), wish).await?;
    let Some(image) = life.vmm.image().cloned() else { return Ok(Chunks::new()) };
    drop(life);
    Ok(spawn_blocking(move || working_set::touched(&image)).await??)
}
