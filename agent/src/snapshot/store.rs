//! Publishing and opening snapshots.

use super::manifest::{BYTES_MAX, Manifest, ManifestError};
use crate::memory::layer::{Layer, LayerError};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::xxh3_64;

/// Names of a snapshot's files.
pub mod name {
    /// The manifest.
    pub const MANIFEST: &str = "manifest.json";
    /// Guest memory.
    pub const MEMORY: &str = "memory.layer";
    /// Device state.
    pub const DEVICE: &str = "device.state";
    /// The writable layer.
    pub const UPPER: &str = "upper.img";
}

/// Folders of snapshots that are being written begin like this; a sweep removes them.
const DRAFT_PREFIX: &str = ".draft-";

/// Why a snapshot cannot be used or published.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file failed.
    #[error("snapshot {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The manifest is not one of ours.
    #[error("snapshot {key}: {source}")]
    Manifest {
        /// Which snapshot.
        key: String,
        /// Why.
        source: ManifestError,
    },
    /// The memory layer is damaged.
    #[error("snapshot {key}: {source}")]
    Memory {
        /// Which snapshot.
        key: String,
        /// Why.
        source: LayerError,
    },
    /// Not a name of a snapshot.
    #[error("`{0}` is not a snapshot's key")]
    Key(String),
    /// A file is not what the manifest says.
    #[error("snapshot {key}: {what} is not what the manifest says")]
    Damaged {
        /// Which snapshot.
        key: String,
        /// Which file.
        what: &'static str,
    },
}

/// Whether a snapshot has to outlive a crash of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Every file and folder is synced before it counts as published.
    Synced,
    /// It is used by this process only and goes with it.
    Transient,
}

/// The snapshots of a host.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// A published snapshot, checked.
#[derive(Debug)]
pub struct Snapshot {
    folder: PathBuf,
    /// What it is.
    pub manifest: Manifest,
}

/// A snapshot that is being written; removed when dropped unpublished.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    store: PathBuf,
}

fn fail(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    move |source| StoreError::File { path: path.to_owned(), source }
}

impl Store {
    /// Opens the store, making its folder, and removes drafts that a crash left (older than an hour: another agent may
    /// be writing into a shared store).
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(fail(folder))?;
        for entry in fs::read_dir(folder).map_err(fail(folder))? {
            let entry = entry.map_err(fail(folder))?;
            let old = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 3600));
            if old && entry.file_name().to_string_lossy().starts_with(DRAFT_PREFIX) {
                fs::remove_dir_all(entry.path()).map_err(fail(&entry.path()))?;
            }
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// Opens a snapshot and checks all but the pages (they are checked as they are read). `None` when there is none.
    pub fn get(&self, key: &str) -> Result<Option<Snapshot>, StoreError> {
        if !is_key(key) {
            return Err(StoreError::Key(key.to_owned()));
        }
        let folder = self.folder.join(key);
        let path = folder.join(name::MANIFEST);
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(fail(&path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(&path)(error)),
        };
        let manifest = Manifest::decode(&bytes)
            .map_err(|source| StoreError::Manifest { key: key.to_owned(), source })?;
        let snapshot = Snapshot { folder, manifest };
        snapshot.check(key)?;
        Ok(Some(snapshot))
    }

    /// Where the snapshots are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of all folders in the store: snapshots, drafts, and what is left of removed ones.
    pub fn folders(&self) -> Result<Vec<String>, StoreError> {
        let fail = fail(&self.folder);
        let entries = fs::read_dir(&self.folder).map_err(&fail)?;
        entries.map(|entry| Ok(entry.map_err(&fail)?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Whether there is a snapshot of this key, in whatever condition.
    pub fn is_published(&self, key: &str) -> bool {
        is_key(key) && self.folder.join(key).join(name::MANIFEST).exists()
    }

    /// Makes a snapshot unfindable, for good when this returns; its other files stay until it is removed, for those
    /// who read them. One that is not there is no error.
    pub fn unpublish(&self, key: &str) -> Result<(), StoreError> {
        let path = self.folder.join(key).join(name::MANIFEST);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(&self.folder.join(key)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(fail(&path)(error)),
        }
    }

    /// Removes a snapshot. One that is not there is no error.
    pub fn remove(&self, key: &str) -> Result<(), StoreError> {
        let folder = self.folder.join(key);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(&folder)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Begins a snapshot.
    pub fn draft(&self) -> Result<Draft, StoreError> {
        let folder = self.folder.join(format!("{DRAFT_PREFIX}{}", uuid::Uuid::now_v7().simple()));
        fs::create_dir(&folder).map_err(fail(&folder))?;
        Ok(Draft { folder, store: self.folder.clone() })
    }
}

impl Snapshot {
    /// Path of one of its files (see [`name`]).
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        [name::MEMORY, name::DEVICE, name::UPPER]
            .iter()
            .filter_map(|name| fs::metadata(self.path(name)).ok())
            .map(|meta| meta.blocks() * 512)
            .sum()
    }

    fn check(&self, key: &str) -> Result<(), StoreError> {
        let damaged = |what| StoreError::Damaged { key: key.to_owned(), what };
        if self.manifest.key != key {
            return Err(damaged("the key"));
        }
        let path = self.path(name::DEVICE);
        let device = fs::read(&path).map_err(fail(&path))?;
        if device.len() as u64 != self.manifest.device_bytes || xxh3_64(&device) != self.manifest.device_xxh3
        {
            return Err(damaged(name::DEVICE));
        }
        let path = self.path(name::UPPER);
        if fs::metadata(&path).map_err(fail(&path))?.len() != self.manifest.upper_bytes {
            return Err(damaged(name::UPPER));
        }
        let path = self.path(name::MEMORY);
        let file = File::open(&path).map_err(fail(&path))?;
        let memory =
            Layer::open(file).map_err(|source| StoreError::Memory { key: key.to_owned(), source })?;
        let is_it = memory.checksum() == self.manifest.memory_xxh3
            && memory.ram_bytes() == self.manifest.size.ram_bytes();
        // A difference without its parent would leave pages to nobody.
        if !is_it || (self.manifest.parent.is_none() && !memory.is_whole()) {
            return Err(damaged(name::MEMORY));
        }
        Ok(())
    }
}

/// (pure) Whether a text can be a snapshot's key: a plain file name, not hidden.
fn is_key(key: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=128).contains(&key.len()) && key.bytes().all(plain)
}

impl Draft {
    /// Path for one of its files (see [`name`]).
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Fills in what the manifest says of the other files: sizes and checksums.
    pub fn measure(&self, manifest: &mut Manifest) -> Result<(), StoreError> {
        let path = self.path(name::DEVICE);
        let device = fs::read(&path).map_err(fail(&path))?;
        manifest.device_bytes = device.len() as u64;
        manifest.device_xxh3 = xxh3_64(&device);
        let path = self.path(name::UPPER);
        manifest.upper_bytes = fs::metadata(&path).map_err(fail(&path))?.len();
        let path = self.path(name::MEMORY);
        let file = File::open(&path).map_err(fail(&path))?;
        manifest.memory_bytes = file.metadata().map_err(fail(&path))?.len();
        let layer =
            Layer::open(file).map_err(|source| StoreError::Memory { key: manifest.key.clone(), source })?;
        manifest.memory_xxh3 = layer.checksum();
        Ok(())
    }

    /// Publishes the snapshot: syncs every file and folder, then renames. A snapshot of this key that is there already
    /// (another builder was faster) stays.
    pub fn publish(self, manifest: &Manifest, durability: Durability) -> Result<(), StoreError> {
        let path = self.path(name::MANIFEST);
        let bytes =
            manifest.encode().map_err(|source| StoreError::Manifest { key: manifest.key.clone(), source })?;
        fs::write(&path, bytes).map_err(fail(&path))?;
        if durability == Durability::Synced {
            for file in [name::MANIFEST, name::MEMORY, name::DEVICE, name::UPPER] {
                let path = self.path(file);
                File::open(&path).and_then(|file| file.sync_all()).map_err(fail(&path))?;
            }
            sync_folder(&self.folder)?;
        }
        let target = self.store.join(&manifest.key);
        match fs::rename(&self.folder, &target) {
            Ok(()) if durability == Durability::Transient => Ok(()),
            Ok(()) => sync_folder(&self.store),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) => Err(fail(&target)(error)),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %self.folder.display(), %error, "an unpublished snapshot is left");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail(folder))
}

#[cfg(test)]
mod tests {
    use super::{super::manifest::tests::sample, *};
    use crate::memory::layer;

    fn publish(store: &Store) -> Manifest {
        let draft = store.draft().unwrap();
        let ram = tempfile::tempfile().unwrap();
        let mut manifest = sample();
        ram.set_len(manifest.size.ram_bytes()).unwrap();
        let out = File::create(draft.path(name::MEMORY)).unwrap();
        layer::write(&ram, manifest.size.ram_bytes(), &out).unwrap();
        fs::write(draft.path(name::DEVICE), b"state").unwrap();
        fs::write(draft.path(name::UPPER), b"disk").unwrap();
        draft.measure(&mut manifest).unwrap();
        draft.publish(&manifest, Durability::Synced).unwrap();
        manifest
    }

    #[test]
    fn keys_that_leave_the_store_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for key in ["", "..", "a/b", ".draft-1", "a.b", &"a".repeat(129)] {
            assert!(matches!(store.get(key), Err(StoreError::Key(_))), "{key}");
        }
    }

    #[test]
    fn a_layer_of_another_snapshot_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let manifest = publish(&store);
        let ram = tempfile::tempfile().unwrap();
        ram.set_len(manifest.size.ram_bytes()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&ram, b"x", 0).unwrap();
        let other = File::create(folder.path().join("k").join(name::MEMORY)).unwrap();
        layer::write(&ram, manifest.size.ram_bytes(), &other).unwrap();
        let error = store.get("k").unwrap_err().to_string();
        assert!(error.contains(name::MEMORY), "{error}");
    }

    #[test]
    fn an_unpublished_snapshot_is_not_found_and_keeps_its_files_for_its_readers() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        publish(&store);
        store.unpublish("k").unwrap();
        store.unpublish("k").unwrap();
        assert!(store.get("k").unwrap().is_none());
        assert!(folder.path().join("k").join(name::MEMORY).exists());
        assert_eq!(store.folders().unwrap(), ["k"]);
    }

    #[test]
    fn a_published_snapshot_is_there_and_a_dropped_draft_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(store.get("k").unwrap().is_none());
        drop(store.draft().unwrap());
        let manifest = publish(&store);
        publish(&store);
        assert_eq!(store.get("k").unwrap().unwrap().manifest, manifest);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        store.remove("k").unwrap();
        store.remove("k").unwrap();
        assert!(store.get("k").unwrap().is_none());
    }

    #[test]
    fn each_damaged_file_is_named() {
        for file in [name::DEVICE, name::MEMORY, name::UPPER, name::MANIFEST] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            publish(&store);
            fs::write(folder.path().join("k").join(file), b"something else").unwrap();
            let error = store.get("k").unwrap_err().to_string();
            assert!(error.contains("snapshot k"), "{error}");
        }
    }
}
