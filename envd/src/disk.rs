//! Grows the file system of the capsule's disk to the size that the disk has become, while it is in use.

#![expect(unsafe_code, reason = "ext4 grows by ioctl only")]

use crate::boot::disks;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::fstatvfs,
};
use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    os::fd::AsRawFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// The kernel hears of the disk's new size by an interrupt, after the agent has.
const SIZE_LIMIT: Duration = Duration::from_secs(10);
const SIZE_PAUSE: Duration = Duration::from_millis(2);
/// Where the file system is mounted for a moment: the overlay holds it, but no path leads to it.
const MOUNT_POINT: &str = "/run/hearth/disk";

nix::ioctl_write_ptr!(
    /// EXT4_IOC_RESIZE_FS: the new number of blocks.
    resize_fs,
    b'f',
    16,
    u64
);

/// Why the disk did not grow.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// There is no such disk.
    #[error("the capsule's disk cannot be found")]
    Missing(#[source] io::Error),
    /// The disk is smaller than what was asked for.
    #[error("the disk has {has} bytes, not the {wanted} that were asked for")]
    Small {
        /// What it has.
        has: u64,
        /// What it should have.
        wanted: u64,
    },
    /// Its file system cannot be reached. One that met an error has become read-only and does not grow.
    #[error("the disk's file system cannot be reached")]
    Mount(#[source] io::Error),
    /// The kernel refused.
    #[error("the disk's file system cannot grow to {bytes} bytes")]
    Resize {
        /// The size.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// The work has no thread.
    #[error("there is no thread to grow the disk")]
    Thread(#[source] io::Error),
}

/// Grows the file system to `bytes`, rounded down to whole blocks. One that has this size is left alone. Not cancelled
/// by its caller: half grown is no state.
pub async fn grow(bytes: u64) -> Result<(), GrowError> {
    let (reply, answer) = oneshot::channel();
    // A thread of its own: one of a pool would end after a restore, at the cost of whoever waits then.
    let thread = thread::Builder::new().spawn(move || {
        // The caller may have gone.
        let _gone = reply.send(grow_now(bytes));
    });
    thread.map_err(GrowError::Thread)?;
    answer.await.map_err(|_| GrowError::Thread(io::ErrorKind::BrokenPipe.into()))?
}

fn grow_now(bytes: u64) -> Result<(), GrowError> {
    let disk = disks::upper().map_err(GrowError::Missing)?;
    wait_for_size(&disk, bytes)?;
    let folder = open_file_system(&disk).map_err(GrowError::Mount)?;
    let resize = |source| GrowError::Resize { bytes, source };
    let block = fstatvfs(&folder).map_err(|errno| resize(errno.into()))?.fragment_size();
    let blocks = bytes.checked_div(block).ok_or_else(|| resize(io::ErrorKind::InvalidData.into()))?;
    // SAFETY: EXT4_IOC_RESIZE_FS reads one u64, which lives until the call returns; the descriptor is open.
    unsafe { resize_fs(folder.as_raw_fd(), &raw const blocks) }.map_err(|errno| resize(errno.into()))?;
    Ok(())
}

fn wait_for_size(disk: &Path, wanted: u64) -> Result<(), GrowError> {
    let start = Instant::now();
    loop {
        let has = File::open(disk).and_then(|mut file| file.seek(SeekFrom::End(0)));
        let has = has.map_err(GrowError::Missing)?;
        if wanted <= has {
            return Ok(());
        }
        if SIZE_LIMIT < start.elapsed() {
            return Err(GrowError::Small { has, wanted });
        }
        thread::sleep(SIZE_PAUSE);
    }
}

/// The root folder of the file system on `disk`, which stays mounted nowhere.
fn open_file_system(disk: &Path) -> io::Result<File> {
    fs::create_dir_all(MOUNT_POINT)?;
    // The same file system as the overlay's: the kernel does not mount a disk twice, it gives another way to it.
    mount(Some(disk), MOUNT_POINT, Some("ext4"), MsFlags::MS_NOATIME, None::<&str>)?;
    let folder = File::open(MOUNT_POINT);
    umount2(MOUNT_POINT, MntFlags::MNT_DETACH)?;
    folder
}
