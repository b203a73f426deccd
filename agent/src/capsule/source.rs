//! What a capsule is restored from: a template's snapshot, or a generation over it.

use crate::{
    error::AgentError,
    snapshot::{
        generation::Generation,
        store::{Snapshot, name},
    },
    template::{Template, Templates},
    vmm::{
        guard::Vmm,
        launch::{Difference, LaunchError},
    },
};
use std::{path::PathBuf, sync::Arc};

/// Where a capsule comes from. Holding it keeps the files.
#[derive(Debug, Clone)]
pub enum Source {
    /// A template.
    Template(Arc<Template>),
    /// A frozen capsule.
    Generation(Arc<Generation>),
}

impl Source {
    /// The template at the bottom, whose memory image the capsule maps.
    pub fn base(&self) -> &Arc<Template> {
        match self {
            Self::Template(template) => template,
            Self::Generation(generation) => &generation.base,
        }
    }

    /// The snapshot that has the device state and the disk.
    fn snapshot(&self) -> &Snapshot {
        match self {
            Self::Template(template) => &template.snapshot,
            Self::Generation(generation) => &generation.snapshot,
        }
    }

    /// Path of the device state to load.
    pub fn device(&self) -> PathBuf {
        self.snapshot().path(name::DEVICE)
    }

    /// Size of its disk in MiB.
    pub fn disk_mb(&self) -> u64 {
        self.snapshot().manifest.upper_bytes >> 20
    }

    /// A VMM that waits for the device state: parked ahead for a template, spawned now for a generation.
    pub async fn vmm(&self, templates: &Templates) -> Result<Vmm, AgentError> {
        let generation = match self {
            Self::Template(template) => return templates.parking.take(template).await,
            Self::Generation(generation) => generation,
        };
        let base = &generation.base;
        let manifest = &base.snapshot.manifest;
        let image = templates.images.get(&manifest.key, manifest.size.ram_bytes())?;
        let difference = Difference {
            key: generation.key().to_owned(),
            layer: generation.snapshot.path(name::MEMORY),
            upper: generation.snapshot.path(name::UPPER),
        };
        let parked = templates.launcher.park(&base.snapshot, &base.rootfs, image, Some(difference)).await;
        parked.map_err(|error| match error {
            LaunchError::NoSlot(_) => AgentError::NoCapacity(error.to_string()),
            error => error.into(),
        })
    }
}
