//! Generations: frozen states of capsules, each a difference to its template's snapshot.
//!
//! ```text
//! <store>/gen-…    what a paused capsule is resumed from; also, for a moment, what a fork is made from
//! <store>/snap-…   a named snapshot, which capsules can be restored from until it is deleted
//! ```
//!
//! Garbage is told by reference. A generation is wanted while a paused capsule's record names it or somebody in this
//! process holds it; a named snapshot is wanted until it is deleted. Deleting unpublishes at once (nothing new can be
//! restored from it, also after a crash), and the files go when the last holder lets go. A running capsule needs none
//! of them: its pager has the layer open, and its next generation is again a difference to the template.

use super::{
    fit::{self, Misfit},
    manifest::Manifest,
    store::{Draft, Durability, Snapshot, Store, StoreError, name},
};
use crate::template::{Template, Templates, base::BaseError, platform};
use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

/// Keys of generations without a name begin like this.
pub(crate) const UNNAMED: &str = "gen-";

/// Why a generation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// There is none of this key.
    #[error("snapshot `{0}` not found")]
    NotFound(String),
    /// A file of it is missing or damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What it stands on is missing or damaged.
    #[error("snapshot {key}: {source}")]
    Base {
        /// Which snapshot.
        key: String,
        /// Why.
        source: BaseError,
    },
    /// What it stands on could not be marked as needed.
    #[error("marking the template's snapshot {key} as needed: {source}")]
    Keep {
        /// Which.
        key: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is a whole template, not a capsule's.
    #[error("snapshot {0}: the manifest names no parent")]
    Orphan(String),
    /// This host cannot restore it.
    #[error("snapshot {key} does not fit this host: {source}")]
    Misfit {
        /// Which snapshot.
        key: String,
        /// Why.
        source: Misfit,
    },
}

/// A generation that can be restored. Files of a deleted one go when the last holder lets go.
#[derive(Debug)]
pub struct Generation {
    /// Its files.
    pub snapshot: Snapshot,
    /// The template that it is a difference to.
    pub base: Arc<Template>,
    deleted: AtomicBool,
    store: Store,
}

impl Generation {
    /// Its key.
    pub fn key(&self) -> &str {
        &self.snapshot.manifest.key
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.deleted.load(Ordering::SeqCst)
            && let Err(error) = self.store.remove(self.key())
        {
            tracing::warn!(key = self.key(), %error, "a deleted snapshot's files are left for the next start's sweep");
        }
    }
}

/// The generations of this host. One exists per agent. All calls read or write files: call them where blocking is
/// allowed.
#[derive(Debug)]
pub struct Generations {
    store: Store,
    templates: Arc<Templates>,
    held: Mutex<HashMap<String, Weak<Generation>>>,
}

impl Generations {
    /// The generations in `folder`, which nobody else writes.
    pub fn open(folder: &Path, templates: Arc<Templates>) -> Result<Self, StoreError> {
        Ok(Self { store: Store::open(folder)?, templates, held: Mutex::default() })
    }

    /// Removes what nobody wants: drafts, deleted snapshots, and generations without a name that `wanted` does not
    /// have. Called at start, before anything is restored. Returns how many.
    pub fn sweep(&self, wanted: &HashSet<String>) -> Result<usize, StoreError> {
        let mut removed = 0;
        for folder in self.store.folders()? {
            if is_garbage(&folder, self.store.is_published(&folder), wanted) {
                self.store.remove(&folder)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Keys of the templates' snapshots that generations stand on. `None` when one cannot be read: it may stand on any.
    pub fn needed(&self) -> Result<Option<HashSet<String>>, StoreError> {
        let mut needed = HashSet::new();
        for key in self.store.folders()?.into_iter().filter(|key| self.store.is_published(key)) {
            let Some(parent) = self.store.get(&key)?.and_then(|snapshot| snapshot.manifest.parent) else {
                return Ok(None);
            };
            needed.insert(parent.key);
        }
        Ok(Some(needed))
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        self.store.folder()
    }

    /// Gives up the bases that no generation stands on any more. Called after a sweep.
    pub fn release_bases(&self) -> Result<(), GenerationError> {
        let Some(needed) = self.needed()? else { return Ok(()) };
        let released = self.templates.keep_bases(&needed, self.store.folder());
        released.map_err(|source| GenerationError::Keep { key: "*".to_owned(), source })
    }

    /// Path of the writable layer of the generation `key`, whether or not there is one.
    pub fn upper(&self, key: &str) -> PathBuf {
        self.store.folder().join(key).join(name::UPPER)
    }

    /// A key for a generation without a name.
    pub fn new_key() -> String {
        format!("{UNNAMED}{}", uuid::Uuid::now_v7().simple())
    }

    /// Begins a generation.
    pub fn draft(&self) -> Result<Draft, StoreError> {
        self.store.draft()
    }

    /// Publishes a generation whose files are written, and opens it.
    pub fn publish(
        &self,
        draft: Draft,
        manifest: &mut Manifest,
        durability: Durability,
    ) -> Result<Arc<Generation>, GenerationError> {
        draft.measure(manifest)?;
        // First the mark, then what needs it.
        if let (Some(parent), Durability::Synced) = (&manifest.parent, durability) {
            let kept = self.templates.keep_base(&parent.key, self.store.folder());
            kept.map_err(|source| GenerationError::Keep { key: parent.key.clone(), source })?;
        }
        draft.publish(manifest, durability)?;
        self.get(&manifest.key)
    }

    /// Publishes another generation's content under a new key, without copying.
    pub fn name(&self, generation: &Generation, key: &str) -> Result<Arc<Generation>, GenerationError> {
        let draft = self.store.draft()?;
        for file in [name::MEMORY, name::DEVICE, name::UPPER] {
            let (from, to) = (generation.snapshot.path(file), draft.path(file));
            fs::hard_link(&from, &to).map_err(|source| StoreError::File { path: to, source })?;
        }
        let mut manifest = Manifest { key: key.to_owned(), ..generation.snapshot.manifest.clone() };
        self.publish(draft, &mut manifest, Durability::Synced)
    }

    /// Opens a generation: every file but the pages is checked (pages are as they are read), and that it fits.
    pub fn get(&self, key: &str) -> Result<Arc<Generation>, GenerationError> {
        if let Some(held) = self.lock().get(key).and_then(Weak::upgrade)
            && !held.deleted.load(Ordering::SeqCst)
        {
            return Ok(held);
        }
        let snapshot = self.store.get(key)?.ok_or_else(|| GenerationError::NotFound(key.to_owned()))?;
        let parent = snapshot.manifest.parent.as_ref();
        let parent = parent.ok_or_else(|| GenerationError::Orphan(key.to_owned()))?;
        let base = self
            .templates
            .base(parent)
            .map_err(|source| GenerationError::Base { key: key.to_owned(), source })?;
        let platform = platform(&self.templates.launcher.engine);
        let rootfs = &base.snapshot.manifest.rootfs_sha256;
        fit::check(&snapshot.manifest, &platform, rootfs)
            .map_err(|source| GenerationError::Misfit { key: key.to_owned(), source })?;
        let store = self.store.clone();
        let generation = Arc::new(Generation { snapshot, base, deleted: AtomicBool::new(false), store });
        let mut held = self.lock();
        held.retain(|_, weak| weak.strong_count() > 0);
        held.insert(key.to_owned(), Arc::downgrade(&generation));
        Ok(generation)
    }

    /// Deletes a generation. Whoever holds it keeps its files. True when there was one.
    pub fn delete(&self, key: &str) -> Result<bool, StoreError> {
        let was_there = self.store.is_published(key);
        self.store.unpublish(key)?;
        let held = self.lock().remove(key).and_then(|weak| weak.upgrade());
        match held {
            // Goes with the last holder, which may be this one.
            Some(generation) => generation.deleted.store(true, Ordering::SeqCst),
            None => self.store.remove(key)?,
        }
        Ok(was_there)
    }

    /// Manifests of the named snapshots and their bytes on disk, oldest first. Damaged ones are left out, with a line in the log.
    pub fn list(&self) -> Result<Vec<(Manifest, u64)>, StoreError> {
        let mut found = Vec::new();
        for key in self.store.folders()? {
            if key.starts_with(UNNAMED) || !self.store.is_published(&key) {
                continue;
            }
            match self.store.get(&key) {
                Ok(Some(snapshot)) => {
                    let bytes = snapshot.disk_bytes();
                    found.push((snapshot.manifest, bytes));
                }
                // Deleted since.
                Ok(None) => {}
                Err(error) => tracing::warn!(key, %error, "a snapshot cannot be used"),
            }
        }
        found.sort_by_key(|(manifest, _)| manifest.created_at_ms);
        Ok(found)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Weak<Generation>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// (pure) Whether nobody wants a folder of the store.
fn is_garbage(folder: &str, is_published: bool, wanted: &HashSet<String>) -> bool {
    !is_published || (folder.starts_with(UNNAMED) && !wanted.contains(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_snapshots_and_referenced_generations_stay() {
        let wanted = HashSet::from(["gen-1".to_owned()]);
        assert!(!is_garbage("gen-1", true, &wanted));
        assert!(is_garbage("gen-2", true, &wanted));
        assert!(!is_garbage("snap-1", true, &wanted));
        assert!(is_garbage("snap-1", false, &wanted));
        assert!(is_garbage("gen-1", false, &wanted));
        assert!(is_garbage(".draft-1", false, &wanted));
    }
}
