//! Flattening: instead of becoming a capsule, the initramfs packs the merged tree of base and upper into a third, empty
//! disk, as an EROFS image, and restarts the machine, which ends it.
//!
//! What is packed is never run: the packer comes with the initramfs, and there is no network yet. The image is followed
//! by zeros, and the disk's last block says how long it is, so that one that was cut short is never taken for whole.

use super::{
    disks::{self, Disks},
    root,
};
use crate::init::{console, mounts::MountError, power};
use nix::sys::reboot::{RebootMode, reboot};
use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

/// The packer; that it is in the initramfs is what asks for a flattening.
const PACKER: &str = "/flatten/mkfs.erofs";
/// It is linked dynamically, and none of the capsule's own libraries is used.
const LOADER: &str = "/flatten/loader";
const LIBRARIES: &str = "/flatten/lib";
/// The same for all images, so that equal trees give equal images.
const UUID: &str = "68656172-7468-4000-8000-000000000003";
/// The image's build time. The packer keeps modification times that are older, and sets back the others.
const BUILD_TIME: &str = "4102444800";

/// The last block of the disk: this, then the image's length as a little-endian u64.
const SEAL: &[u8; 8] = b"HRTHBASE";
const SEAL_BYTES: u64 = 4096;

/// Offsets in an EROFS superblock, at byte 1024 (Linux: fs/erofs/erofs_fs.h): magic, bits of the block's size, blocks.
const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
const BLOCK_BITS_AT: usize = 12;
const BLOCKS_AT: usize = 36;

/// Why a capsule cannot be flattened.
#[derive(Debug, thiserror::Error)]
enum FlattenError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("there is no empty disk for the image")]
    Disk(#[source] io::Error),
    #[error("the packer cannot be started")]
    Start(#[source] io::Error),
    #[error("the packer failed ({0})")]
    Packer(ExitStatus),
    #[error("the image cannot be sealed")]
    Seal(#[source] io::Error),
}

/// Whether this machine was booted to flatten its disks.
pub fn is_wanted() -> bool {
    Path::new(PACKER).exists()
}

/// Flattens, and ends the machine.
pub fn run(disks: &Disks) -> ! {
    match flatten(disks) {
        Ok(bytes) => console::say(&format!("flattened: {bytes} bytes")),
        Err(error) => console::say(&power::line(&error)),
    }
    nix::unistd::sync();
    // The VMM was told not to reboot: it ends.
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    power::fail(&error)
}

fn flatten(disks: &Disks) -> Result<u64, FlattenError> {
    let target = disks::blank().map_err(FlattenError::Disk)?;
    root::merge(disks)?;
    let status = Command::new(LOADER)
        .args(["--library-path", LIBRARIES, PACKER, "-d1", "-U", UUID])
        .arg(&target)
        .arg(root::NEW_ROOT)
        .env_clear()
        .env("SOURCE_DATE_EPOCH", BUILD_TIME)
        .stdin(Stdio::null())
        .status()
        .map_err(FlattenError::Start)?;
    if !status.success() {
        return Err(FlattenError::Packer(status));
    }
    seal(&target).map_err(FlattenError::Seal)
}

/// Writes the last block, after the image is on the disk.
fn seal(target: &Path) -> io::Result<u64> {
    let mut disk = File::options().read(true).write(true).open(target)?;
    disk.sync_all()?;
    let end = disk.seek(SeekFrom::End(0))?;
    let mut superblock = [0; BLOCKS_AT + 4];
    disk.read_exact_at(&mut superblock, SUPERBLOCK)?;
    let length = length(&superblock).filter(|length| length + SEAL_BYTES <= end);
    let length = length.ok_or(io::ErrorKind::InvalidData)?;
    let mut block = [0; SEAL_BYTES as usize];
    block[..8].copy_from_slice(SEAL);
    block[8..16].copy_from_slice(&length.to_le_bytes());
    disk.write_all_at(&block, end - SEAL_BYTES)?;
    disk.sync_all()?;
    Ok(length)
}

/// (pure) Bytes of the image with this superblock.
fn length(superblock: &[u8; BLOCKS_AT + 4]) -> Option<u64> {
    let number = |at: usize| {
        superblock[at..at + 4].iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte))
    };
    let bits = superblock[BLOCK_BITS_AT];
    (number(0) == MAGIC && (9..=16).contains(&bits)).then(|| u64::from(number(BLOCKS_AT)) << bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(blocks: u32, bytes: u64) -> tempfile::NamedTempFile {
        let disk = tempfile::NamedTempFile::new().unwrap();
        let mut superblock = [0; BLOCKS_AT + 4];
        superblock[..4].copy_from_slice(&MAGIC.to_le_bytes());
        superblock[BLOCK_BITS_AT] = 12;
        superblock[BLOCKS_AT..].copy_from_slice(&blocks.to_le_bytes());
        disk.as_file().set_len(bytes).unwrap();
        disk.as_file().write_all_at(&superblock, SUPERBLOCK).unwrap();
        disk
    }

    #[test]
    fn the_last_block_says_how_long_the_image_is() {
        let whole = disk(5, 1 << 20);
        assert_eq!(seal(whole.path()).unwrap(), 5 * 4096);
        let mut block = [0; 16];
        whole.as_file().read_exact_at(&mut block, (1 << 20) - SEAL_BYTES).unwrap();
        assert_eq!(block[..8], *SEAL);
        assert_eq!(block[8..], (5 * 4096_u64).to_le_bytes());
    }

    #[test]
    fn what_is_no_image_or_leaves_no_room_for_the_seal_is_refused() {
        assert_eq!(seal(disk(256, 1 << 20).path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(seal(disk(255, 1 << 20).path()).unwrap(), 255 * 4096);
        let empty = tempfile::NamedTempFile::new().unwrap();
        empty.as_file().set_len(1 << 20).unwrap();
        assert_eq!(seal(empty.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
