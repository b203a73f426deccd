//! Templates: what capsules start from. A template is built once per content key: boot, warm, freeze, snapshot.

pub mod base;
mod base_image;
pub mod build;
pub mod recipe;
pub mod shelf;
pub mod sizes;
pub mod working_set;

use crate::{
    capsule::parking::Parking,
    config::AgentConfig,
    disk::base::{BaseImage, BaseImages},
    engine::Engine,
    memory::image::Images,
    snapshot::{
        fit,
        store::{Snapshot, Store, StoreError},
    },
    vmm::{launch::Launcher, machine::Size},
};
use build::BuildError;
use recipe::{BootSet, Recipe, RecipeError};
use sizes::{NoSize, Wanted};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use working_set::{Recordings, WorkingSet};

/// Why a template cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TemplateError {
    /// The guest images are missing or unreadable.
    #[error("{0}")]
    Recipe(String),
    /// The build failed.
    #[error("building template `{name}`: {reason}")]
    Build {
        /// Which template.
        name: String,
        /// Why.
        reason: String,
    },
}

impl From<RecipeError> for TemplateError {
    fn from(error: RecipeError) -> Self {
        Self::Recipe(hearth_service::telemetry::chain(&error))
    }
}

/// A template that can be restored on this host.
#[derive(Debug)]
pub struct Template {
    /// Its newest snapshot.
    pub snapshot: Snapshot,
    /// The root filesystem below it.
    pub rootfs: std::path::PathBuf,
    /// What its capsules touch first, once that is recorded.
    pub working_set: WorkingSet,
    /// Nobody removes the snapshot, nor a base image below it, while this lives.
    _in_use: (shelf::InUse, Option<shelf::InUse>),
}

/// Progress of a build that several callers may watch.
#[derive(Debug, Clone)]
pub enum Progress {
    /// What is being done.
    Line(String),
    /// It is there.
    Done(Arc<Template>),
    /// It failed.
    Failed(TemplateError),
}

/// The templates of this host. One exists per agent.
#[derive(Debug)]
pub struct Templates {
    pub(crate) store: Store,
    pub(crate) bases: BaseImages,
    pub(crate) images: Arc<Images>,
    pub(crate) launcher: Arc<Launcher>,
    pub(crate) parking: Parking,
    config: AgentConfig,
    recordings: Recordings,
    /// Work that a stopping agent waits for.
    tasks: TaskTracker,
    /// By name and size.
    ready: Mutex<HashMap<(String, Size), Arc<Template>>>,
    building: Mutex<HashMap<(String, Size), watch::Receiver<Progress>>>,
    /// Older snapshots of templates, for capsules that stand on them.
    older: Mutex<HashMap<String, Arc<Template>>>,
}

impl Templates {
    /// No template is loaded yet. `tasks` are waited for when the agent stops.
    pub fn new(
        (store, bases): (Store, BaseImages),
        images: Arc<Images>,
        launcher: Arc<Launcher>,
        parking: Parking,
        config: AgentConfig,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            store,
            bases,
            images,
            launcher,
            parking,
            config,
            recordings: Recordings::default(),
            tasks,
            ready: Mutex::default(),
            building: Mutex::default(),
            older: Mutex::default(),
        }
    }

    /// A template that was ensured before, in its usual size if it has that.
    pub fn get(&self, name: &str) -> Option<Arc<Template>> {
        self.pick(name, Wanted::default())?.ok()
    }

    /// A template that was ensured before, in the smallest size that has what is wanted. None when there is none of
    /// this name in any size.
    pub fn pick(&self, name: &str, wanted: Wanted) -> Option<Result<Arc<Template>, NoSize>> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let baked: Vec<Size> = ready.keys().filter(|key| key.0 == name).map(|key| key.1).collect();
        if baked.is_empty() {
            return None;
        }
        match sizes::choose(&baked, self.config.size(), wanted) {
            Ok(size) => ready.get(&(name.to_owned(), size)).cloned().map(Ok),
            Err(error) => Some(Err(error)),
        }
    }

    /// The size that `wanted` means for a template that is baked; the field and the reason when it cannot be baked.
    pub fn size(&self, wanted: Wanted) -> Result<Size, (&'static str, String)> {
        let size = wanted.or(self.config.size());
        sizes::check(size, self.config.image_budget_mb).map(|()| size)
    }

    /// All that were ensured.
    pub fn list(&self) -> Vec<Arc<Template>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Loads the template's snapshot, or builds it. Concurrent calls watch the same build. Fails at once for a name
    /// that no recipe has.
    pub fn ensure(self: &Arc<Self>, name: &str, size: Size) -> Option<watch::Receiver<Progress>> {
        let base = self.base_image(name);
        let recipe = Recipe::find(name, size, &self.config, base.as_ref())?;
        let key = (name.to_owned(), size);
        let mut building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = building.get(&key) {
            return Some(progress.clone());
        }
        let (send, receive) = watch::channel(Progress::Line(format!("looking for template {name}")));
        building.insert(key.clone(), receive.clone());
        drop(building);
        let templates = self.clone();
        tokio::spawn(async move {
            let outcome = templates.load_or_build(&recipe, base.as_ref(), &send).await;
            if outcome.is_ok() {
                templates.prune().await;
            }
            let progress = match outcome {
                Ok(template) => {
                    // Without one, restores only read their pages as they touch them.
                    if let Err(error) = working_set::ensure(&templates, &template, &send).await {
                        tracing::warn!(template = recipe.name, %error, "no working set could be recorded");
                    }
                    let mut ready = templates.ready.lock().unwrap_or_else(PoisonError::into_inner);
                    ready.insert(key.clone(), template.clone());
                    Progress::Done(template)
                }
                Err(error) => {
                    tracing::error!(template = recipe.name, %error, "a template cannot be had");
                    Progress::Failed(error)
                }
            };
            templates.building.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            // Watchers may have left.
            let _ = send.send(progress);
        });
        Some(receive)
    }

    async fn load_or_build(
        self: &Arc<Self>,
        recipe: &Recipe,
        base: Option<&BaseImage>,
        progress: &watch::Sender<Progress>,
    ) -> Result<Arc<Template>, TemplateError> {
        let failed = |reason: String| TemplateError::Build { name: recipe.name.clone(), reason };
        let boot = BootSet::read(&self.launcher.layout.boot_files())?;
        let boot = match base {
            Some(base) => boot.on(base, self.bases.rootfs(base)),
            None => boot,
        };
        // Before it is looked at: what is held stays.
        let _held = self.bases.hold(&boot.files.rootfs).map_err(|error| failed(error.to_string()))?;
        let platform = platform(&self.launcher.engine);
        let key = recipe.key(&boot, &platform);
        match self.open(&key, &boot, &platform).await {
            Ok(Some(template)) => return Ok(template),
            Ok(None) => {}
            Err(error) => {
                // A damaged snapshot of a template is no loss: it is built again from the same recipe.
                tracing::warn!(key, %error, "a template's snapshot cannot be used and is built again");
                self.store.remove(&key).map_err(|error| failed(error.to_string()))?;
            }
        }
        build::build(self, recipe, &boot, &platform, &key, progress)
            .await
            .map_err(|error: BuildError| failed(hearth_service::telemetry::chain(&error)))?;
        match self.open(&key, &boot, &platform).await {
            Ok(Some(template)) => Ok(template),
            Ok(None) => Err(failed("the published snapshot is not there".to_owned())),
            Err(error) => Err(failed(error)),
        }
    }

    /// Keeps the shelf from growing without bound.
    async fn prune(&self) {
        let folder = self.launcher.layout.templates();
        let pruned = tokio::task::spawn_blocking(move || shelf::prune(&folder, shelf::UNUSED_KEPT)).await;
        match pruned.map_err(std::io::Error::other).and_then(|removed| removed) {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(removed = removed.join(" "), "old templates removed"),
            Err(error) => tracing::warn!(%error, "old templates could not be removed"),
        }
    }

    /// Opens a published snapshot and checks that it fits this host.
    async fn open(
        &self,
        key: &str,
        boot: &BootSet,
        platform: &crate::snapshot::manifest::Platform,
    ) -> Result<Option<Arc<Template>>, String> {
        let (store, owned) = (self.store.clone(), key.to_owned());
        let folder = self.launcher.layout.templates().join(key);
        let base = self.bases.hold(&boot.files.rootfs).map_err(|error| error.to_string())?;
        let opened = tokio::task::spawn_blocking(move || {
            // First into use, then looked at: what is looked at stays.
            let in_use =
                shelf::InUse::of(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            let snapshot: Result<Option<Snapshot>, StoreError> = store.get(&owned);
            Ok::<_, String>(in_use.zip(snapshot.map_err(|error| hearth_service::telemetry::chain(&error))?))
        });
        let Some((in_use, snapshot)) = opened.await.map_err(|error| error.to_string())?? else {
            return Ok(None);
        };
        fit::check(&snapshot.manifest, platform, &boot.rootfs_sha256).map_err(|misfit| misfit.to_string())?;
        let working_set = WorkingSet::of(&snapshot).map_err(|error| error.to_string())?;
        let rootfs = boot.files.rootfs.clone();
        Ok(Some(Arc::new(Template { snapshot, rootfs, working_set, _in_use: (in_use, base) })))
    }
}

/// What this host offers to snapshots.
pub fn platform(engine: &Engine) -> crate::snapshot::manifest::Platform {
    crate::snapshot::manifest::Platform {
        engine: engine.name().to_owned(),
        engine_version: engine.version.clone(),
        accelerator: engine.accelerator.as_str().to_owned(),
        cpu: recipe::cpu(engine.accelerator),
        page_bytes: crate::memory::PAGE as u64,
        tsc_khz: engine.tsc_khz,
    }
}
