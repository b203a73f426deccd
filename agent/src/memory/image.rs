//! Memory images: the hot form of a snapshot's memory on a tmpfs of the agent's own.

use super::PAGE;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::statvfs,
};
use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
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
    /// Images of an earlier agent, by name, until the sweep.
    taken_back: HashMap<String, Weak<Image>>,
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

    /// Its name on the agent's tmpfs.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
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
    /// Mounts the tmpfs at `folder` with a budget of `budget_mb`, or takes over the one that is there with all that is on
    /// it: living VMMs map it. What nobody took back by [`Images::take_back`] goes by [`Images::sweep`].
    pub fn open(folder: &Path, budget_mb: u64) -> Result<Self, ImageError> {
        let fail = |source: io::Error| ImageError::Mount { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(fail)?;
        // huge=never: a huge page would turn the holes beside a filled page into zeros without an event.
        let options = format!("size={budget_mb}m,mode=0711,huge=never");
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let tmpfs = |flags| {
            mount(Some("hearth-images"), folder, Some("tmpfs"), flags, Some(options.as_str()))
                .map_err(io::Error::from)
        };
        if !is_mount_point(folder).map_err(fail)? {
            tmpfs(flags).map_err(fail)?;
        } else if let Err(error) = tmpfs(flags | MsFlags::MS_REMOUNT) {
            // Less than what is on it.
            tracing::warn!(%error, budget_mb, "the tmpfs for memory images keeps the size that it has");
        }
        let images = Self { folder: folder.to_owned(), current: Mutex::default() };
        let next = images.files()?.iter().filter_map(|path| number(path)).max().unwrap_or(0);
        images.lock().next = next;
        Ok(images)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> Result<Vec<PathBuf>, ImageError> {
        let fail = |source: io::Error| ImageError::File { path: self.folder.clone(), source };
        let entries = fs::read_dir(&self.folder).map_err(fail)?;
        entries.map(|entry| Ok(entry.map_err(fail)?.path())).collect()
    }

    /// The image `name` of the snapshot `key`, which a VMM of an earlier agent maps. It is the snapshot's current one
    /// unless a newer one is.
    pub fn take_back(&self, key: &str, name: &str, ram_bytes: u64) -> Result<Arc<Image>, ImageError> {
        let path = self.folder.join(name);
        let fail = |source: io::Error| ImageError::File { path: path.clone(), source };
        if Path::new(name).file_name() != Some(OsStr::new(name)) {
            return Err(fail(io::ErrorKind::InvalidFilename.into()));
        }
        let mut state = self.lock();
        if let Some(image) = state.taken_back.get(name).and_then(Weak::upgrade) {
            return Ok(image);
        }
        let meta = fs::symlink_metadata(&path).map_err(fail)?;
        if !meta.is_file() || meta.len() != ram_bytes {
            return Err(fail(io::Error::new(
                io::ErrorKind::InvalidData,
                "it has not the size of its memory",
            )));
        }
        // Filled ahead when it was fresh.
        let image = Arc::new(Image { path: path.clone(), used: AtomicBool::new(true) });
        let current = state.by_key.get(key).and_then(|image| number(&image.path));
        if current <= number(&path) {
            state.by_key.insert(key.to_owned(), image.clone());
        }
        state.taken_back.insert(name.to_owned(), Arc::downgrade(&image));
        Ok(image)
    }

    /// Removes all that no image of this agent is: what nobody maps any more, and what a template build left. Called
    /// once, before anything is made. Returns how many.
    pub fn sweep(&self) -> Result<usize, ImageError> {
        let taken_back = std::mem::take(&mut self.lock().taken_back);
        let mut removed = 0;
        for path in self.files()? {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if taken_back.get(name).is_some_and(|image| image.strong_count() > 0) {
                continue;
            }
            fs::remove_file(&path).map_err(|source| ImageError::File { path, source })?;
            removed += 1;
        }
        Ok(removed)
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

/// The number of the image at `path`, by which newer ones of a snapshot are told: `KEY-NUMBER.img`.
fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".img")?.rsplit('-').next()?.parse().ok()
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
