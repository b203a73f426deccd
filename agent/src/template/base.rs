//! Templates by the key of their snapshot: what generations of capsules are differences to, also after the recipe of
//! the template has changed and a newer snapshot has its name.

use super::{Template, Templates, platform, shelf, working_set::WorkingSet};
use crate::{
    disk::base::ROOTFS,
    snapshot::{
        fit::{self, Misfit},
        manifest::Parent,
        store::StoreError,
    },
};
use serde::Deserialize;
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

/// Why what a generation stands on cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The snapshot is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It was deleted.
    #[error("its template's snapshot {0} is not in the cache any more")]
    Gone(String),
    /// It was built again, with other memory.
    #[error("its template's snapshot {0} was built again since and has other memory")]
    Rebuilt(String),
    /// The root filesystem was deleted.
    #[error("its root filesystem (SHA-256 {0}) is not in the cache any more")]
    Rootfs(String),
    /// Its template's snapshot cannot be taken into use.
    #[error("{folder}: {source}")]
    Folder {
        /// Where it is.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This host cannot restore it.
    #[error("it does not fit this host: {0}")]
    Misfit(#[from] Misfit),
}

/// What `images/build` writes beside the images.
#[derive(Deserialize)]
struct ImagesManifest {
    files: HashMap<String, ImageFile>,
}

#[derive(Deserialize)]
struct ImageFile {
    sha256: String,
}

impl Templates {
    /// The template whose snapshot `parent` names. Reads files; call it where blocking is allowed.
    pub fn base(&self, parent: &Parent) -> Result<Arc<Template>, BaseError> {
        let loaded = self.list().into_iter().find(|template| template.snapshot.manifest.key == parent.key);
        let template = match loaded.or_else(|| self.lock_older().get(&parent.key).cloned()) {
            Some(template) => template,
            None => self.open_base(&parent.key, true)?,
        };
        if template.snapshot.manifest.memory_xxh3 != parent.memory_xxh3 {
            return Err(BaseError::Rebuilt(parent.key.clone()));
        }
        Ok(template)
    }

    /// The same for a capsule that runs: also when this host could not restore it any more, because its engine or its
    /// guest images are newer by now. Then the capsule goes on, and only its captures are refused.
    pub fn base_of_living(&self, parent: &Parent) -> Result<Arc<Template>, BaseError> {
        let template = match self.base(parent) {
            Err(BaseError::Misfit(_) | BaseError::Rootfs(_)) => self.open_base(&parent.key, false)?,
            base => return base,
        };
        if template.snapshot.manifest.memory_xxh3 != parent.memory_xxh3 {
            return Err(BaseError::Rebuilt(parent.key.clone()));
        }
        Ok(template)
    }

    /// Marks the snapshot `key` as the base of generations in `owner`. To be called before such a one is published.
    pub fn keep_base(&self, key: &str, owner: &Path) -> io::Result<()> {
        shelf::keep(&self.launcher.layout.templates(), key, owner)
    }

    /// Takes the marks of `owner` from all but the bases in `needed`.
    pub fn keep_bases(&self, needed: &HashSet<String>, owner: &Path) -> io::Result<()> {
        shelf::keep_only(&self.launcher.layout.templates(), needed, owner)
    }

    fn open_base(&self, key: &str, to_restore: bool) -> Result<Arc<Template>, BaseError> {
        let folder = self.launcher.layout.templates().join(key);
        let in_use = shelf::InUse::of(&folder).map_err(|source| BaseError::Folder { folder, source })?;
        let in_use = in_use.ok_or_else(|| BaseError::Gone(key.to_owned()))?;
        let snapshot = self.store.get(key)?.ok_or_else(|| BaseError::Gone(key.to_owned()))?;
        let sha256 = snapshot.manifest.rootfs_sha256.clone();
        if to_restore {
            fit::check(&snapshot.manifest, &platform(&self.launcher.engine), &sha256)?;
        }
        let images = self.launcher.layout.boot_files();
        let folders = [images.parent().map(Path::to_owned), Some(self.launcher.layout.bases())];
        let rootfs = folders.iter().flatten().find_map(|folder| find_rootfs(folder, &sha256));
        let rootfs = match rootfs {
            None if !to_restore => PathBuf::new(),
            rootfs => rootfs.ok_or(BaseError::Rootfs(sha256))?,
        };
        let working_set =
            WorkingSet::of(&snapshot).map_err(|source| StoreError::Memory { key: key.to_owned(), source })?;
        let held = self
            .bases
            .hold(&rootfs)
            .map_err(|source| BaseError::Folder { folder: rootfs.clone(), source })?;
        let template = Arc::new(Template { snapshot, rootfs, working_set, _in_use: (in_use, held) });
        if to_restore {
            self.lock_older().insert(key.to_owned(), template.clone());
        }
        Ok(template)
    }

    fn lock_older(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Template>>> {
        self.older.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The root filesystem with this checksum among the guest images that are there.
fn find_rootfs(images: &Path, sha256: &str) -> Option<PathBuf> {
    fs::read_dir(images).ok()?.flatten().map(|entry| entry.path()).find_map(|folder| {
        let bytes = fs::read(folder.join("manifest.json")).ok()?;
        let manifest: ImagesManifest = serde_json::from_slice(&bytes).ok()?;
        let is_it = manifest.files.get(ROOTFS)?.sha256 == sha256;
        let path = folder.join(ROOTFS);
        (is_it && path.is_file()).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_filesystem_is_found_by_its_checksum() {
        let images = tempfile::tempdir().unwrap();
        for (key, sha256) in [("a", "11"), ("b", "22")] {
            let folder = images.path().join(key);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join(ROOTFS), b"files").unwrap();
            let text = format!(
                r#"{{"key": "{key}", "files": {{"{ROOTFS}": {{"bytes": 5, "sha256": "{sha256}"}}}}}}"#
            );
            fs::write(folder.join("manifest.json"), text).unwrap();
        }
        fs::write(images.path().join("current.json"), b"{}").unwrap();
        assert_eq!(find_rootfs(images.path(), "22"), Some(images.path().join("b").join(ROOTFS)));
        assert_eq!(find_rootfs(images.path(), "33"), None);
        fs::remove_file(images.path().join("b").join(ROOTFS)).unwrap();
        assert_eq!(find_rootfs(images.path(), "22"), None);
    }
}
