//! Firecracker: its HTTP API, its jail, and how it is started.
//!
//! A Firecracker is generic until it is told what to boot or load; ours is started by its jailer in a folder that holds
//! hard links to what it may see (a private bind where the file is on another filesystem).

pub mod api;
pub mod capture;
pub mod jail;
pub mod launch;
pub mod machine;

use crate::engine::firecracker::Version;
use api::{Api, ApiError, MemoryBackend, SnapshotCreate, SnapshotLoad};
use capture::Life;
use machine::path;
use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    time::Duration,
};

/// Largest device state: it is some tens of KiB.
const STATE_BYTES_MAX: u64 = 64 << 20;

/// A running Firecracker.
#[derive(Debug)]
pub struct Firecracker {
    /// Its API.
    pub api: Api,
    /// Its jail's root on the host.
    root: PathBuf,
    uid: u32,
    version: Version,
    life: Life,
}

/// Why a Firecracker did not load or save.
#[derive(Debug, thiserror::Error)]
pub enum FirecrackerError {
    /// It did not do as told.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// It is another program than the one that was looked at when the agent started.
    #[error("Firecracker {found} answers instead of {expected}: restart Hearth after an upgrade")]
    Version {
        /// What it says.
        found: String,
        /// What snapshots are bound to.
        expected: Version,
    },
    /// Its device state could not be brought into its jail, or out of it.
    #[error("the device state: {0}")]
    State(#[from] io::Error),
}

impl Firecracker {
    /// Loads the device state in the file `state`; guest memory comes from the pager that listens already. The vCPUs
    /// stay stopped.
    pub async fn load(&self, state: &Path) -> Result<(), FirecrackerError> {
        let (from, to, uid) = (state.to_owned(), self.inside(path::STATE), self.uid);
        // A file of its own: a jailed process gets no name of a file in the store.
        blocking(move || bring_in(&from, &to, uid)).await?;
        let load = SnapshotLoad {
            snapshot_path: path::STATE,
            mem_backend: MemoryBackend { backend_type: "Uffd", backend_path: path::PAGER },
            track_dirty_pages: self.version.has_track_dirty_pages().then_some(true),
            enable_diff_snapshots: (!self.version.has_track_dirty_pages()).then_some(true),
            resume_vm: false,
            clock_realtime: self.version.has_clock_realtime().then_some(true),
        };
        Ok(self.api.load_snapshot(&load).await?)
    }

    /// Writes the device state of a stopped machine into the new file `state`, and all of guest memory into the file
    /// that the jail was given for it.
    pub async fn save(&self, state: &Path) -> Result<(), FirecrackerError> {
        let create =
            SnapshotCreate { snapshot_type: "Full", snapshot_path: path::STATE, mem_file_path: path::MEMORY };
        self.api.create_snapshot(&create).await?;
        let (from, to) = (self.inside(path::STATE), state.to_owned());
        Ok(blocking(move || take_out(&from, &to)).await?)
    }

    /// Takes hold of one that an earlier agent started in `folder`, as `uid`, and says whether its vCPUs run.
    pub async fn take_over(
        folder: &Path,
        uid: u32,
        (version, life): (Version, Life),
        deadline: Duration,
    ) -> Result<(Self, bool), FirecrackerError> {
        let owned = folder.to_owned();
        let found = tokio::task::spawn_blocking(move || jail::Jail::find(&owned)).await;
        let (root, root_fd) = found.map_err(io::Error::other)??;
        let api = Api::new(root_fd);
        let info = api.greet(deadline, || true).await?;
        if info.vmm_version != version.to_string() {
            return Err(FirecrackerError::Version { found: info.vmm_version, expected: version });
        }
        Ok((Self { api, root, uid, version, life }, info.state == "Running"))
    }

    /// The host's path of a path in the jail.
    fn inside(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// Copies a device state into a jail, whose folder belongs to the jailed user: nothing that is there is followed.
fn bring_in(from: &Path, to: &Path, uid: u32) -> io::Result<()> {
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o400).open(to)?;
    io::copy(&mut File::open(from)?, &mut target)?;
    fchown(&target, Some(uid), Some(uid))
}

/// Copies a device state out of a jail: a plain file of a plausible size, or nothing.
fn take_out(from: &Path, to: &Path) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let source = OpenOptions::new().read(true).custom_flags(flags).open(from)?;
    let meta = source.metadata()?;
    if !meta.is_file() || STATE_BYTES_MAX < meta.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of a device state's size"));
    }
    io::copy(&mut source.take(STATE_BYTES_MAX), &mut File::create_new(to)?).map(drop)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn a_state_goes_in_and_out_and_no_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("store"), "state").unwrap();
        bring_in(&path("store"), &path("jailed"), 0).unwrap();
        take_out(&path("jailed"), &path("out")).unwrap();
        assert_eq!(fs::read(path("out")).unwrap(), b"state");
        symlink(path("store"), path("link")).unwrap();
        assert!(take_out(&path("link"), &path("stolen")).is_err());
        symlink(path("elsewhere"), path("trap")).unwrap();
        assert!(bring_in(&path("store"), &path("trap"), 0).is_err());
        assert!(!path("stolen").exists() && !path("elsewhere").exists());
    }
}
