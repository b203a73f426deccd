//! Memory images: the hot form of a snapshot's memory on a tmpfs of the agent's own.

use super::PAGE;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::statvfs,
};
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The tmpfs could not be mounted.
    #[error("mounting the tmpfs for memory images at {path}: {source}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file on it failed.
    #[error("memory image {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The budget is used up.
    #[error("no room for memory images: {free_mb} MiB free, {needed_mb} MiB needed")]
    Full {
        /// What is left.
        free_mb: u64,
        /// What was asked for.
        needed_mb: u64,
    },
}

/// The tmpfs and the images on it. One exists per agent.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    current: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    by_key: HashMap<String, Arc<Image>>,
}

/// One image. The file is unlinked when the last holder lets go, never cut or punched before: whoever maps it keeps
/// it.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    used: AtomicBool,
}

impl Image {
    /// The image's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True for the first caller only: the image is as empty as it was made, and about to be used.
    pub fn is_fresh(&self) -> bool {
        !self.used.swap(true, Ordering::Relaxed)
    }

    /// Bytes that it holds now.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.path)?.blocks() * 512)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "memory image left for the next start's sweep");
        }
    }
}

impl Images {
    /// Mounts the tmpfs at `folder` with a budget of `budget_mb`, or takes over the one that is there, and removes
    /// images that nobody owns any more.
    pub fn open(folder: &Path, budget_mb: u64) -> Result<Self, ImageError> {
        let fail = |source: io::Error| ImageError::Mount { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(fail)?;
        if !is_mount_point(folder).map_err(fail)? {
            // huge=never: a huge page would turn the holes beside a filled page into zeros without an event.
            let options = format!("size={budget_mb}m,mode=0711,huge=never");
            mount(
                Some("hearth-images"),
                folder,
                Some("tmpfs"),
                MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
                Some(options.as_str()),
            )
            .map_err(|errno| fail(errno.into()))?;
        }
        for entry in fs::read_dir(folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            fs::remove_file(&path).map_err(|source| ImageError::File { path, source })?;
        }
        Ok(Self { folder: folder.to_owned(), current: Mutex::default() })
    }

    /// Images in a folder that is no tmpfs of their own, for tests of their content.
    #[cfg(test)]
    pub(super) fn on(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), current: Mutex::default() }
    }

    /// The image of a snapshot, made empty (all holes) when there is none.
    pub fn get(&self, key: &str, ram_bytes: u64) -> Result<Arc<Image>, ImageError> {
        let mut state = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = state.by_key.get(key) {
            return Ok(image.clone());
        }
        state.next += 1;
        let path = self.folder.join(format!("{key}-{}.img", state.next));
        let image = Arc::new(Image { path: path.clone(), used: AtomicBool::new(false) });
        create_sparse(&path, ram_bytes).map_err(|source| ImageError::File { path, source })?;
        state.by_key.insert(key.to_owned(), image.clone());
        Ok(image)
    }

    /// Whether a snapshot has an image.
    pub fn has(&self, key: &str) -> bool {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).by_key.contains_key(key)
    }

    /// Forgets images that nobody maps, until so many bytes are free or there are no more.
    pub fn drop_unused(&self, bytes: u64) {
        let mut state = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        while self.usage().is_ok_and(|(used, all)| all.saturating_sub(used) < bytes) {
            let unused = state.by_key.iter().find(|(_, image)| Arc::strong_count(image) == 1);
            let Some(key) = unused.map(|(key, _)| key.clone()) else { return };
            state.by_key.remove(&key);
        }
    }

    /// Forgets the current image of a snapshot; capsules that map it keep it. Returns what it held.
    pub fn evict(&self, key: &str) -> u64 {
        let mut state = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        state.by_key.remove(key).and_then(|image| image.resident_bytes().ok()).unwrap_or(0)
    }

    /// A file for a guest's RAM while a template is built, all of it reserved up front so that the build cannot meet a
    /// full tmpfs half way.
    pub fn reserve_build(&self, uid: u32, ram_bytes: u64) -> Result<BuildRam, ImageError> {
        let stat = statvfs(&self.folder)
            .map_err(|errno| ImageError::File { path: self.folder.clone(), source: errno.into() })?;
        let free = stat.blocks_available() * stat.fragment_size();
        if free < ram_bytes {
            return Err(ImageError::Full { free_mb: free >> 20, needed_mb: ram_bytes >> 20 });
        }
        let path = self.folder.join(format!("build-{}.ram", uuid::Uuid::now_v7().simple()));
        let ram = BuildRam { path: path.clone() };
        let fail = |source: io::Error| ImageError::File { path: path.clone(), source };
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(fail)?;
        nix::fcntl::posix_fallocate(&file, 0, ram_bytes as i64).map_err(|errno| fail(errno.into()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(fail)?;
        std::os::unix::fs::chown(&path, Some(uid), Some(uid)).map_err(fail)?;
        Ok(ram)
    }

    /// Bytes used and bytes in all on the tmpfs.
    pub fn usage(&self) -> io::Result<(u64, u64)> {
        let stat = statvfs(&self.folder)?;
        let block = stat.fragment_size();
        Ok(((stat.blocks() - stat.blocks_free()) * block, stat.blocks() * block))
    }

    /// Unmounts the tmpfs at `folder` if it is mounted. Called when no capsule is left.
    pub fn unmount(folder: &Path) -> io::Result<()> {
        if is_mount_point(folder)? {
            umount2(folder, MntFlags::UMOUNT_NOFOLLOW)?;
        }
        Ok(())
    }
}

/// RAM of a template that is being built; removed when dropped.
#[derive(Debug)]
pub struct BuildRam {
    path: PathBuf,
}

impl BuildRam {
    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BuildRam {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "build memory left for the next start's sweep");
        }
    }
}

fn create_sparse(path: &Path, bytes: u64) -> io::Result<()> {
    debug_assert!(bytes.is_multiple_of(PAGE as u64));
    let file = File::create_new(path)?;
    file.set_len(bytes)?;
    // Readable by every capsule's user, writable by nobody but root's pager.
    fs::set_permissions(path, Permissions::from_mode(0o444))
}

/// Whether something is mounted at `path`: its device differs from its parent's.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(true) };
    if !path.exists() {
        return Ok(false);
    }
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}
