//! Templates on base images that were made of capsules: found by the image's id, and gone before the image is.

use super::{Template, Templates, shelf};
use crate::disk::base::{BaseImage, BaseImageError};
use hearth_proto::id::ImageId;
use std::{
    collections::HashMap,
    hash::Hash,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Takes what is on this root filesystem out of a map.
fn take<K: Eq + Hash + Clone>(
    map: &Mutex<HashMap<K, Arc<Template>>>,
    sha256: &str,
) -> Vec<(K, Arc<Template>)> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    map.extract_if(|_, template| template.snapshot.manifest.rootfs_sha256 == sha256).collect()
}

fn put_back<K: Eq + Hash>(map: &Mutex<HashMap<K, Arc<Template>>>, taken: Vec<(K, Arc<Template>)>) {
    map.lock().unwrap_or_else(PoisonError::into_inner).extend(taken);
}

impl Templates {
    /// The base image of this name. One that is damaged is none, with a line in the log.
    pub(super) fn base_image(&self, name: &str) -> Option<BaseImage> {
        let id: ImageId = name.parse().ok()?;
        self.bases.get(id).unwrap_or_else(|error| {
            tracing::warn!(image = name, %error, "a base image cannot be used");
            None
        })
    }

    /// Removes a base image and the templates that were built on it. Refused, and nothing changed, while a capsule or
    /// something on disk needs it. `needed` has the keys of the snapshots that generations in the folder `owner` stand on.
    /// Reads and writes files; call it where blocking is allowed.
    pub fn remove_base_image(
        &self,
        id: ImageId,
        needed: impl Fn(&str) -> bool,
        owner: &Path,
    ) -> Result<(), BaseImageError> {
        let Some(image) = self.bases.get(id)? else { return Ok(()) };
        if self.bases.list()?.iter().any(|other| other.id != id && other.key == image.key) {
            // The files stay, for the other name.
            return self.bases.remove(id);
        }
        let built = self.built_on(&image, owner)?;
        if built.iter().any(|(key, kept)| *kept || needed(key)) {
            let by = "paused capsules or named snapshots".to_owned();
            return Err(BaseImageError::InUse { id, by });
        }
        let (ready, older) = (take(&self.ready, &image.sha256), take(&self.older, &image.sha256));
        let keys =
            ready.iter().map(|(_, template)| template).chain(older.iter().map(|(_, template)| template));
        for template in keys {
            self.parking.forget(&template.snapshot.manifest.key);
        }
        let is_used = |template: &Arc<Template>| Arc::strong_count(template) > 1;
        if ready.iter().any(|(_, template)| is_used(template))
            || older.iter().any(|(_, template)| is_used(template))
        {
            put_back(&self.ready, ready);
            put_back(&self.older, older);
            return Err(BaseImageError::InUse {
                id,
                by: "a capsule, or a working set that is being recorded".to_owned(),
            });
        }
        drop((ready, older));
        self.bases.remove(id)?;
        for (key, _) in built {
            // One that another Hearth has just taken into use cannot be restored, and goes when it is pruned.
            if let Err(error) = shelf::remove(&self.launcher.layout.templates(), &key, owner) {
                tracing::warn!(key, %error, "a template of a base image that is gone is left");
            }
        }
        Ok(())
    }

    /// Keys of the snapshots that were made on this image, and whether others than `owner` keep each.
    fn built_on(&self, image: &BaseImage, owner: &Path) -> Result<Vec<(String, bool)>, BaseImageError> {
        let shelf = self.launcher.layout.templates();
        let fail = |source| BaseImageError::File { path: shelf.clone(), source };
        let mut found = Vec::new();
        for key in self.store.folders().map_err(|error| fail(std::io::Error::other(error)))? {
            // One that cannot be read cannot be restored either.
            let Ok(Some(snapshot)) = self.store.get(&key) else { continue };
            if snapshot.manifest.rootfs_sha256 == image.sha256 {
                let kept = shelf::is_kept(&shelf.join(&key), Some(owner)).map_err(fail)?;
                found.push((key, kept));
            }
        }
        Ok(found)
    }
}
