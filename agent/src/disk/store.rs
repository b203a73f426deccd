//! Where the agent keeps the disks and snapshots of capsules: in its folder as it is, or on an XFS of its own there, in
//! a sparse file, on which copies of disks share their blocks (reflink) whatever file system the host has.
//!
//! ```text
//! agent/store.xfs    the file; that it exists is what makes this agent's store an XFS (see `config::Layout`)
//! agent/store/       where it is mounted: vmms/, snapshots/
//! ```
//!
//! The mount outlives the agent, as what is on it does: one that is there is taken over. A clean stop unmounts it when
//! nothing uses it.

use crate::config::Layout;
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::{
        statfs::{XFS_SUPER_MAGIC, statfs},
        statvfs::{FsFlags, statvfs},
    },
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

const MKFS: &str = "/usr/sbin/mkfs.xfs";
const MOUNT: &str = "/usr/bin/mount";
/// `discard` gives back to the host what is deleted.
const OPTIONS: &str = "loop,nosuid,noatime,discard";
/// Smallest XFS that is worth it; its log alone takes 64 MiB.
pub const SIZE_MB_MIN: u64 = 1024;

/// What the store is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StoreFs {
    /// The file system that the data folder is on.
    Plain,
    /// An XFS in a file in the data folder.
    Xfs,
}

/// What lies on the store, beside what is the agent's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Capsules' files only, which are data.
    Data,
    /// Firecracker's jails too: the jailer makes devices in them, and copies the program there that it starts.
    Jails,
}

impl Holds {
    fn options(self) -> &'static str {
        match self {
            Self::Data => "nodev,noexec",
            Self::Jails => "dev,exec",
        }
    }

    /// Whether a mount with these flags is as this wants it.
    fn suits(self, flags: FsFlags) -> bool {
        let strict = FsFlags::ST_NODEV | FsFlags::ST_NOEXEC;
        match self {
            Self::Data => flags.contains(strict),
            Self::Jails => !flags.intersects(strict),
        }
    }
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreFsError {
    /// A file failed.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program is not there or failed.
    #[error("{program}: {reason}")]
    Program {
        /// Which.
        program: &'static str,
        /// What it said.
        reason: String,
    },
    /// The other kind of store has something in it.
    #[error(
        "HEARTH_STORE_FS={asked}, but {folder} holds capsules or snapshots of a store that is {is}: start once more \
         with {is}, destroy them and their snapshots, stop, and change the setting then"
    )]
    InUse {
        /// What was asked for.
        asked: &'static str,
        /// What there is.
        is: &'static str,
        /// Where.
        folder: PathBuf,
    },
    /// Something else is mounted there.
    #[error("what is mounted at {0} is not the agent's XFS: unmount it")]
    Foreign(PathBuf),
}

fn fail(path: &Path) -> impl Fn(io::Error) -> StoreFsError + '_ {
    move |source| StoreFsError::File { path: path.to_owned(), source }
}

/// (pure) What is to be done, by what was asked for, whether the XFS's file exists, and whether the store that would be
/// left has something in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Nothing,
    Make,
    Mount,
    Remove,
    Refuse,
}

fn plan(asked: StoreFs, exists: bool, is_left_used: bool) -> Plan {
    match (asked, exists) {
        (StoreFs::Plain, false) => Plan::Nothing,
        (StoreFs::Xfs, true) => Plan::Mount,
        (StoreFs::Plain, true) | (StoreFs::Xfs, false) if is_left_used => Plan::Refuse,
        (StoreFs::Xfs, false) => Plan::Make,
        (StoreFs::Plain, true) => Plan::Remove,
    }
}

/// Opens the store of the agent's folder: makes the XFS if need be, mounts it or takes over the mount that is there, or
/// gives up an empty one that is not wanted any more. Returns the layout that everything lies in. Runs programs: call
/// it where blocking is allowed.
pub fn open(layout: &Layout, (asked, size_mb): (StoreFs, u64), holds: Holds) -> Result<Layout, StoreFsError> {
    let image = layout.store_image();
    let exists = image.exists();
    if exists {
        mount(&image, &layout.store(), holds)?;
    }
    let is_left_used = is_used(layout)?;
    match plan(asked, exists, is_left_used) {
        Plan::Nothing | Plan::Mount => {}
        Plan::Make => {
            make(&image, size_mb)?;
            mount(&image, &layout.store(), holds)?;
        }
        Plan::Remove => {
            unmount(&layout.store()).map_err(fail(&layout.store()))?;
            fs::remove_file(&image).map_err(fail(&image))?;
        }
        Plan::Refuse => {
            close(layout).map_err(fail(&layout.store()))?;
            let (asked, is) = if exists { ("plain", "xfs") } else { ("xfs", "plain") };
            let folder = layout.vmms().parent().unwrap_or(&layout.agent()).to_owned();
            return Err(StoreFsError::InUse { asked, is, folder });
        }
    }
    Ok(layout.renewed())
}

/// Mounts the store that there is, if any, for somebody who looks at it while no agent runs. [`close`] it afterwards.
pub fn reopen(layout: &Layout) -> Result<(), StoreFsError> {
    let image = layout.store_image();
    if image.exists() { mount(&image, &layout.store(), Holds::Data) } else { Ok(()) }
}

/// Unmounts the store if nothing uses it. What is left mounted is taken over by the next agent.
pub fn close(layout: &Layout) -> io::Result<()> {
    let folder = layout.store();
    if !layout.store_image().exists() || !is_mount_point(&folder)? {
        return Ok(());
    }
    // VMMs that live on hold their disks in mount namespaces of their own, where an unmount would not be refused.
    if has_entries(&layout.vmms())? {
        return Ok(());
    }
    match unmount(&folder) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            tracing::warn!(folder = %folder.display(), "the store is in use and stays mounted");
            Ok(())
        }
        other => other,
    }
}

/// Whether VMMs or snapshots lie in the layout's store.
fn is_used(layout: &Layout) -> Result<bool, StoreFsError> {
    for folder in [layout.vmms(), layout.snapshots()] {
        if has_entries(&folder).map_err(fail(&folder))? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_entries(folder: &Path) -> io::Result<bool> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the file, sparse: whole, or not at all.
fn make(image: &Path, size_mb: u64) -> Result<(), StoreFsError> {
    let draft = image.with_extension("draft");
    let made = make_draft(&draft, size_mb).and_then(|()| fs::rename(&draft, image).map_err(fail(image)));
    if made.is_err() {
        // The error that is returned says more than one of the clean-up.
        let _ = fs::remove_file(&draft);
    }
    made?;
    let folder = image.parent().unwrap_or(image);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail(folder))?;
    tracing::info!(image = %image.display(), size_mb, "made an XFS for capsules' disks");
    Ok(())
}

fn make_draft(draft: &Path, size_mb: u64) -> Result<(), StoreFsError> {
    let file = File::create(draft).map_err(fail(draft))?;
    fs::set_permissions(draft, fs::Permissions::from_mode(0o600)).map_err(fail(draft))?;
    file.set_len(size_mb << 20).map_err(fail(draft))?;
    let mut mkfs = Command::new(MKFS);
    mkfs.args(["-q", "-f", "-m", "reflink=1", "-L", "hearth"]).arg(draft);
    run(MKFS, mkfs)?;
    file.sync_all().map_err(fail(draft))
}

/// Mounts the XFS, or changes the options of a mount that is there, which VMMs that live in mount namespaces of their own
/// do not see. The loop device goes with the mount.
fn mount(image: &Path, folder: &Path, holds: Holds) -> Result<(), StoreFsError> {
    fs::create_dir_all(folder).map_err(fail(folder))?;
    let mut mount = Command::new(MOUNT);
    if !is_mount_point(folder).map_err(fail(folder))? {
        let options = format!("{OPTIONS},{}", holds.options());
        mount.args(["-t", "xfs", "-o", &options]).arg(image).arg(folder);
        run(MOUNT, mount)?;
    } else if !holds.suits(statvfs(folder).map_err(|errno| fail(folder)(errno.into()))?.flags()) {
        mount.args(["-o", &format!("remount,bind,nosuid,noatime,{}", holds.options())]).arg(folder);
        run(MOUNT, mount)?;
    }
    let kind = statfs(folder).map_err(|errno| fail(folder)(errno.into()))?.filesystem_type();
    if kind != XFS_SUPER_MAGIC {
        return Err(StoreFsError::Foreign(folder.to_owned()));
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).map_err(fail(folder))
}

fn unmount(folder: &Path) -> io::Result<()> {
    match umount2(folder, MntFlags::UMOUNT_NOFOLLOW) {
        // Nothing is mounted there.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn run(program: &'static str, mut command: Command) -> Result<(), StoreFsError> {
    let failed = |reason: String| StoreFsError::Program { program, reason };
    let output = command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().map_err(
        |error| match error.kind() {
            io::ErrorKind::NotFound => failed("it is not installed (Debian: xfsprogs, mount)".to_owned()),
            _ => failed(error.to_string()),
        },
    )?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{}: {}", output.status, words.trim().replace('\n', " | "))))
}

/// Whether something is mounted at `folder`: its device differs from its parent's.
fn is_mount_point(folder: &Path) -> io::Result<bool> {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    match (device(folder), folder.parent()) {
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        (own, Some(parent)) => Ok(own? != device(parent)?),
        (_, None) => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_changes_its_kind_only_when_it_is_empty() {
        use StoreFs::{Plain, Xfs};
        for used in [false, true] {
            assert_eq!(plan(Plain, false, used), Plan::Nothing);
            assert_eq!(plan(Xfs, true, used), Plan::Mount);
        }
        assert_eq!(plan(Xfs, false, false), Plan::Make);
        assert_eq!(plan(Plain, true, false), Plan::Remove);
        assert_eq!(plan(Xfs, false, true), Plan::Refuse);
        assert_eq!(plan(Plain, true, true), Plan::Refuse);
    }

    #[test]
    fn a_plain_store_with_something_in_it_is_not_left() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), dir.path());
        fs::create_dir_all(layout.snapshots().join("snap-x")).unwrap();
        let error = open(&layout, (StoreFs::Xfs, SIZE_MB_MIN), Holds::Data).unwrap_err().to_string();
        assert!(error.contains("HEARTH_STORE_FS=xfs") && error.contains("plain"), "{error}");
        assert!(!layout.store_image().exists());
        assert_eq!(open(&layout, (StoreFs::Plain, SIZE_MB_MIN), Holds::Data).unwrap().vmms(), layout.vmms());
        close(&layout).unwrap();
    }
}
