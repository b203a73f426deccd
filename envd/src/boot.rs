//! The initramfs stage: from the bare kernel to a root file system that envd runs on as PID 1.
//!
//! ```text
//! modules ──▶ disks (base: EROFS, upper: ext4) ──▶ overlay at /newroot ──▶ envd into its /run ──▶ switch root, exec
//! ```
//! The root file system has no envd of its own, so a base image does not depend on it.

pub mod disks;
mod flatten;
pub mod modules;
pub mod root;

use crate::init::{console, mounts::MountError, power};
use disks::DiskError;
use modules::ModuleError;
use root::RootError;

/// Lists the modules to load; its presence is what tells the initramfs from a root file system.
pub const MODULES_LIST: &str = "/hearth/modules.list";

/// Why the capsule cannot boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A module was not loaded.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// A disk is not there.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The root file system cannot be made or entered.
    #[error(transparent)]
    Root(#[from] RootError),
}

/// Whether this process is the initramfs's `/init`.
pub fn is_initramfs() -> bool {
    std::process::id() == 1 && std::path::Path::new(MODULES_LIST).exists()
}

/// Boots; comes back only by powering the capsule off.
pub fn run() -> ! {
    let Err(error) = boot();
    power::fail(&error)
}

fn boot() -> Result<std::convert::Infallible, BootError> {
    root::mount_kernel_file_systems()?;
    console::attach();
    modules::load_all(MODULES_LIST.as_ref())?;
    let disks = disks::wait()?;
    if flatten::is_wanted() {
        flatten::run(&disks);
    }
    root::assemble(&disks)?;
    root::enter()?;
    Ok(root::become_init()?)
}
