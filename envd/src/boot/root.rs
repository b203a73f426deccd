//! Makes the root file system (an overlay of the capsule's layer over the base) and moves into it.

use super::disks::Disks;
use crate::init::mounts::{Mount, MountError, make_folder};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, chroot},
};
use std::{
    convert::Infallible,
    fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::Command,
};

/// Where envd lives in the root file system: on a tmpfs, out of the disk's snapshot.
pub const ENVD: &str = "/run/hearth/envd";
/// Where the merged tree is mounted.
pub const NEW_ROOT: &str = "/newroot";
/// Mounts that move into the new root as they are.
const MOVED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Why the root file system cannot be made or entered.
#[derive(Debug, thiserror::Error)]
#[error("the root file system: cannot {step}")]
pub struct RootError {
    step: &'static str,
    #[source]
    source: io::Error,
}

/// Mounts /proc, /sys and /dev in the initramfs.
pub fn mount_kernel_file_systems() -> Result<(), MountError> {
    Mount::PROC.make("")?;
    Mount::SYS.make("")?;
    Mount::DEV.make("")
}

/// Mounts base, upper and the overlay of both.
pub fn merge(disks: &Disks) -> Result<(), MountError> {
    let base = Mount {
        source: disks.base.to_str(),
        kind: "erofs",
        target: "/base",
        flags: MsFlags::MS_RDONLY,
        data: "",
    };
    base.make("")?;
    // noinit_itable: no background writer; the disk is part of snapshots, and idle capsules write nothing.
    // noauto_da_alloc: a file that is replaced is not flushed at once. That guards against a power cut, after which a
    // capsule starts from its last snapshot anyway.
    let upper = Mount {
        source: disks.upper.to_str(),
        kind: "ext4",
        target: "/upper",
        flags: MsFlags::MS_NOATIME,
        data: "errors=remount-ro,discard,noinit_itable,noauto_da_alloc",
    };
    upper.make("")?;
    make_folder("/upper/root", 0o755)?;
    make_folder("/upper/work", 0o755)?;
    let overlay = Mount {
        source: Some("overlay"),
        kind: "overlay",
        target: NEW_ROOT,
        flags: MsFlags::MS_NOATIME,
        data: "lowerdir=/base,upperdir=/upper/root,workdir=/upper/work",
    };
    overlay.make("")
}

/// Mounts the merged tree, with a tmpfs on its /run that holds a copy of this program.
pub fn assemble(disks: &Disks) -> Result<(), MountError> {
    merge(disks)?;
    Mount::RUN.make(NEW_ROOT)?;
    make_folder(&format!("{NEW_ROOT}/run/hearth"), 0o755)?;
    let envd = format!("{NEW_ROOT}{ENVD}");
    let copied =
        fs::copy("/init", &envd).and_then(|_| fs::set_permissions(&envd, fs::Permissions::from_mode(0o755)));
    copied.map_err(|source| MountError::Folder { path: envd, source })
}

/// Switches root. The initramfs's files are deleted on the way: they are memory.
pub fn enter() -> Result<(), RootError> {
    for from in MOVED {
        let to = format!("{NEW_ROOT}{from}");
        fs::create_dir_all(&to).map_err(at("make a mount point"))?;
        mount(Some(from), to.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(at_errno("move mounts"))?;
    }
    // The overlay holds both disks itself; nothing else needs to see them.
    for disk in ["/base", "/upper"] {
        umount2(disk, MntFlags::MNT_DETACH).map_err(at_errno("detach the disks"))?;
    }
    let device = fs::metadata("/").map_err(at("look at the initramfs"))?.dev();
    delete_below(Path::new("/"), device).map_err(at("free the initramfs"))?;
    chdir(NEW_ROOT).map_err(at_errno("enter it"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(at_errno("move it to /"))?;
    chroot(".").and_then(|()| chdir("/")).map_err(at_errno("change the root"))
}

/// Becomes `envd init` of the new root; comes back only with an error.
pub fn become_init() -> Result<Infallible, RootError> {
    Err(at("execute envd")(Command::new(ENVD).arg("init").env_clear().exec()))
}

/// Deletes what is on `device` below `folder`, without crossing into other mounts.
fn delete_below(folder: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            delete_below(&path, device)?;
            // One that holds a mount stays.
            let _ = fs::remove_dir(&path);
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn at(step: &'static str) -> impl Fn(io::Error) -> RootError {
    move |source| RootError { step, source }
}

fn at_errno(step: &'static str) -> impl Fn(nix::Error) -> RootError {
    move |errno| RootError { step, source: errno.into() }
}
