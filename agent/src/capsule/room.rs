//! What the host has for one more capsule, and what that one needs: read now, for the decision of
//! [`crate::admission`].

use super::source::Source;
use crate::{
    admission::{Host, Wanted},
    agent::Parts,
    error::AgentError,
    snapshot::store::name,
    usage::meminfo_kib,
};
use nix::sys::statvfs::statvfs;
use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// What the first restore of a template fills into its memory image within its first seconds.
const IMAGE_FIRST_MB: u64 = 64;

/// The two sides of an admission.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// What there is.
    pub host: Host,
    /// What is needed.
    pub wanted: Wanted,
}

impl Room {
    /// Looks at the host. Blocks for some 100 µs.
    pub fn look(parts: &Parts, source: &Source) -> Result<Self, AgentError> {
        let manifest = &source.base().snapshot.manifest;
        let layout = &parts.templates.launcher.layout;
        let unknown = |error: io::Error| AgentError::NoCapacity(format!("what it has is not known: {error}"));
        // A store of its own is a sparse file, which fills the file system that it is on.
        let disks = [layout.vmms(), layout.agent()].map(|folder| free_mb(&folder));
        let [store, below] = disks.map(|free| free.map_err(unknown));
        // One that is not there is told by the restore.
        let upper_bytes = fs::metadata(source.upper()).map_or(0, |upper| upper.blocks() * 512);
        let needs_image = !parts.images.has(&manifest.key);
        if needs_image {
            parts.images.drop_unused(IMAGE_FIRST_MB << 20);
        }
        let (used, all) = parts.images.usage().map_err(unknown)?;
        let host = Host {
            cpus: parts.host.cpus,
            memory_available_mb: meminfo_kib("MemAvailable").map_err(unknown)? >> 10,
            disk_free_mb: store?.min(below?),
            images_free_mb: all.saturating_sub(used) >> 20,
        };
        let wanted = Wanted {
            vcpus: manifest.size.vcpus,
            memory_mb: manifest.size.memory_mb,
            disk_mb: upper_bytes.div_ceil(1 << 20),
            image_mb: if needs_image { IMAGE_FIRST_MB } else { 0 },
        };
        Ok(Self { host, wanted })
    }
}

impl Source {
    /// Path of the writable layer that a restore copies.
    fn upper(&self) -> std::path::PathBuf {
        match self {
            Self::Template(template) => template.snapshot.path(name::UPPER),
            Self::Generation(generation) => generation.snapshot.path(name::UPPER),
        }
    }
}

/// What the file system of a folder has left.
pub(super) fn free_mb(folder: &Path) -> io::Result<u64> {
    let disk = statvfs(folder)?;
    Ok((disk.blocks_available() * disk.fragment_size()) >> 20)
}
