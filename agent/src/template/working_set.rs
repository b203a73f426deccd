//! Recording a template's working set: throw-away restores into an empty image, and what they left in it. One that does
//! not fit any more is recorded anew.

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
use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::spawn_blocking};

/// Restores that are watched. The second shows how well the first predicts.
const RESTORES: usize = 2;
/// A set that predicted less than this share of what a restore touched is recorded anew. Recordings of one template
/// predict each other by 0.9 and more.
const HITS_MIN: f64 = 0.75;
/// A set that does not fit although it is new is not recorded again before this.
const RECORDING_PERIOD: Duration = Duration::from_secs(1800);

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

/// When each snapshot's working set was recorded by this agent, and whether it is just now.
#[derive(Debug, Default)]
pub struct Recordings(Mutex<HashMap<String, Recording>>);

#[derive(Debug, Clone, Copy)]
struct Recording {
    began: Instant,
    is_under_way: bool,
}

/// A recording under way; over when this is dropped.
struct UnderWay<'a> {
    recordings: &'a Recordings,
    key: String,
}

impl Recordings {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Recording>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_under_way(&self, key: &str) -> bool {
        self.lock().get(key).is_some_and(|recording| recording.is_under_way)
    }

    /// Begins one, unless one is under way or was begun within `period`.
    fn begin(&self, key: &str, now: Instant, period: Duration) -> Option<UnderWay<'_>> {
        let mut recordings = self.lock();
        let is_due = recordings
            .get(key)
            .is_none_or(|last| !last.is_under_way && period <= now.saturating_duration_since(last.began));
        is_due.then(|| {
            recordings.insert(key.to_owned(), Recording { began: now, is_under_way: true });
            UnderWay { recordings: self, key: key.to_owned() }
        })
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(recording) = self.recordings.lock().get_mut(&self.key) {
            recording.is_under_way = false;
        }
    }
}

impl Templates {
    /// Whether capsules of this template get its working set ahead: not while it is being recorded, when only what they
    /// touch is to be seen.
    fn prefetches(&self, template: &Template) -> bool {
        self.config.prefetch
            && template.working_set.path.exists()
            && !self.recordings.is_under_way(&template.snapshot.manifest.key)
    }

    /// Looks how well the working set predicted what the restore that began with this image has touched, and records
    /// the set anew when it does not fit any more. Takes its time, in the background.
    pub fn judge(self: &Arc<Self>, template: &Arc<Template>, image: Arc<Image>) {
        if !self.prefetches(template) {
            return;
        }
        let (templates, template) = (self.clone(), template.clone());
        self.tasks.spawn(async move {
            let path = template.working_set.path.clone();
            let judged = spawn_blocking(move || -> Result<_, WorkingSetError> {
                let set = working_set::read(&path)?;
                Ok(fit(&set, &working_set::touched(&image)?))
            });
            let fit = match judged.await {
                Ok(Ok(fit)) => fit,
                Ok(Err(error)) => return tracing::warn!(%error, "the working set cannot be judged"),
                Err(error) => return tracing::warn!(%error, "the working set cannot be judged"),
            };
            let name = &template.snapshot.manifest.template;
            metrics::gauge!("hearth_agent_working_set_hit_ratio", "template" => name.clone()).set(fit.hits);
            if HITS_MIN <= fit.hits {
                return;
            }
            match record(&templates, &template, RECORDING_PERIOD).await {
                Ok(true) => {
                    tracing::info!(hits = fit.hits, "a working set that did not fit was recorded anew")
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "no working set could be recorded"),
            }
        });
    }

    /// Fills the template's working set into an image that is about to be used, beside the restore that uses it.
    pub fn prefetch(&self, template: &Template, image: Arc<Image>) {
        let path = template.working_set.path.clone();
        if !self.prefetches(template) {
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
    record(templates, template, Duration::ZERO).await.map(drop)
}

/// Records the working set of `template`, in place of the one that it has. False when that was done within `period`, or
/// is being done.
async fn record(
    templates: &Arc<Templates>,
    template: &Arc<Template>,
    period: Duration,
) -> Result<bool, RecordError> {
    let key = &template.snapshot.manifest.key;
    let Some(_under_way) = templates.recordings.begin(key, Instant::now(), period) else { return Ok(false) };
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
    metrics::counter!("hearth_agent_working_sets_recorded_total").increment(1);
    Ok(true)
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
    let life = restore(templates, &Source::Template(template.clone()), wish, None).await?;
    let Some(image) = life.vmm.image().cloned() else { return Ok(Chunks::new()) };
    drop(life);
    Ok(spawn_blocking(move || working_set::touched(&image)).await??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_recording_at_a_time_and_none_right_after_another() {
        let recordings = Recordings::default();
        let (start, hour) = (Instant::now(), Duration::from_secs(3600));
        let first = recordings.begin("a", start, hour);
        assert!(first.is_some() && recordings.is_under_way("a") && !recordings.is_under_way("b"));
        assert!(recordings.begin("a", start + 2 * hour, Duration::ZERO).is_none(), "one is under way");
        drop(first);
        assert!(!recordings.is_under_way("a"));
        assert!(recordings.begin("a", start + hour / 2, hour).is_none(), "too early");
        assert!(recordings.begin("b", start, hour).is_some(), "another template");
        assert!(recordings.begin("a", start + hour, hour).is_some());
    }
}
