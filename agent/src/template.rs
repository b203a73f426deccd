//! Templates: what capsules start from. A template is built once per content key: boot, warm, freeze, snapshot.

pub mod build;
pub mod recipe;

use crate::{
    capsule::parking::Parking,
    config::AgentConfig,
    engine::Engine,
    memory::image::Images,
    snapshot::{
        fit,
        store::{Snapshot, Store, StoreError},
    },
    vmm::launch::Launcher,
};
use build::BuildError;
use recipe::{BootSet, Recipe, RecipeError};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

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
    pub(crate) images: Arc<Images>,
    pub(crate) launcher: Arc<Launcher>,
    pub(crate) parking: Parking,
    config: AgentConfig,
    ready: Mutex<HashMap<String, Arc<Template>>>,
    building: Mutex<HashMap<String, watch::Receiver<Progress>>>,
}

impl Templates {
    /// No template is loaded yet.
    pub fn new(
        store: Store,
        images: Arc<Images>,
        launcher: Arc<Launcher>,
        parking: Parking,
        config: AgentConfig,
    ) -> Self {
        Self { store, images, launcher, parking, config, ready: Mutex::default(), building: Mutex::default() }
    }

    /// A template that was ensured before.
    pub fn get(&self, name: &str) -> Option<Arc<Template>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All that were ensured.
    pub fn list(&self) -> Vec<Arc<Template>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Loads the template's snapshot, or builds it. Concurrent calls watch the same build. Fails at once for a name
    /// that no recipe has.
    pub fn ensure(self: &Arc<Self>, name: &str) -> Option<watch::Receiver<Progress>> {
        let recipe = Recipe::find(name, &self.config)?;
        let mut building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = building.get(name) {
            return Some(progress.clone());
        }
        let (send, receive) = watch::channel(Progress::Line(format!("looking for template {name}")));
        building.insert(name.to_owned(), receive.clone());
        drop(building);
        let templates = self.clone();
        tokio::spawn(async move {
            let outcome = templates.load_or_build(&recipe, &send).await;
            let progress = match outcome {
                Ok(template) => {
                    let mut ready = templates.ready.lock().unwrap_or_else(PoisonError::into_inner);
                    ready.insert(recipe.name.to_owned(), template.clone());
                    Progress::Done(template)
                }
                Err(error) => {
                    tracing::error!(template = recipe.name, %error, "a template cannot be had");
                    Progress::Failed(error)
                }
            };
            templates.building.lock().unwrap_or_else(PoisonError::into_inner).remove(recipe.name);
            // Watchers may have left.
            let _ = send.send(progress);
        });
        Some(receive)
    }

    async fn load_or_build(
        self: &Arc<Self>,
        recipe: &Recipe,
        progress: &watch::Sender<Progress>,
    ) -> Result<Arc<Template>, TemplateError> {
        let failed = |reason: String| TemplateError::Build { name: recipe.name.to_owned(), reason };
        let boot = BootSet::read(&self.launcher.layout.boot_files())?;
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

    /// Opens a published snapshot and checks that it fits this host.
    async fn open(
        &self,
        key: &str,
        boot: &BootSet,
        platform: &crate::snapshot::manifest::Platform,
    ) -> Result<Option<Arc<Template>>, String> {
        let (store, owned) = (self.store.clone(), key.to_owned());
        let opened: Result<Option<Snapshot>, StoreError> =
            tokio::task::spawn_blocking(move || store.get(&owned))
                .await
                .map_err(|error| error.to_string())?;
        let Some(snapshot) = opened.map_err(|error| hearth_service::telemetry::chain(&error))? else {
            return Ok(None);
        };
        fit::check(&snapshot.manifest, platform, &boot.rootfs_sha256).map_err(|misfit| misfit.to_string())?;
        Ok(Some(Arc::new(Template { snapshot, rootfs: boot.files.rootfs.clone() })))
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
