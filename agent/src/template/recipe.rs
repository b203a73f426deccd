//! What a template is made of, and its content key.

use crate::{
    config::AgentConfig,
    disk::base::BaseImage,
    engine::Accelerator,
    snapshot::manifest::{self, Platform},
    vmm::{
        firecracker,
        machine::{BootFiles, Size},
        qemu::{self, Purpose},
    },
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Hex digits of a key.
const KEY_DIGITS: usize = 24;

/// What is built into a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The template's name.
    pub name: String,
    /// Size that is baked in.
    pub size: Size,
    /// Size of the disk in MiB.
    pub disk_mb: u64,
    /// Languages whose default context is warm.
    pub languages: Vec<String>,
}

impl Recipe {
    /// The recipe of a name; `base`: the base image of this name, which a capsule was made into.
    pub fn find(name: &str, size: Size, config: &AgentConfig, base: Option<&BaseImage>) -> Option<Self> {
        let languages = match (name, base) {
            ("code", _) => vec!["python".to_owned()],
            (_, Some(base)) => base.languages.clone(),
            (_, None) => return None,
        };
        Some(Self { name: name.to_owned(), size, disk_mb: config.default_disk, languages })
    }

    /// Key of the snapshot that this recipe gives with these files on this platform: equal keys, equal content.
    pub fn key(&self, boot: &BootSet, platform: &Platform) -> String {
        let mut digest = Sha256::new();
        let mut add = |text: &str| {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text.as_bytes());
        };
        // Not the counter's rate, which is measured anew at each start: `snapshot::fit` compares it.
        let platform = Platform { tsc_khz: 0, ..platform.clone() };
        add(&format!("{} {self:?} {platform:?}", manifest::VERSION));
        add(&self.machine(&platform));
        for file in [&boot.files.kernel, &boot.files.initramfs, &boot.files.rootfs, &boot.files.upper] {
            // Their names hold the keys of their contents.
            let name = file.components().rev().take(2).map(|part| part.as_os_str().to_string_lossy());
            add(&name.collect::<Vec<_>>().join("/"));
        }
        add(&boot.rootfs_sha256);
        let mut key = hex::encode(digest.finalize());
        key.truncate(KEY_DIGITS);
        format!("{}-{key}", self.name)
    }

    /// What the engine makes of the machine.
    fn machine(&self, platform: &Platform) -> String {
        if platform.engine == "firecracker" {
            return firecracker::machine::fingerprint(self.size);
        }
        let accelerator = if platform.accelerator == "kvm" { Accelerator::Kvm } else { Accelerator::Tcg };
        let boot_once = Purpose::Boot { clock: qemu::clock_options(accelerator, 0), output: false };
        format!("{:?}", qemu::arguments("template", self.size, accelerator, &boot_once))
    }
}

/// The CPU that snapshots are bound to: the model the guest sees, and under KVM the host's own behind it.
pub fn cpu(accelerator: Accelerator) -> String {
    let model = qemu::cpu_model(accelerator).to_owned();
    match accelerator {
        Accelerator::Tcg => model,
        Accelerator::Kvm => {
            let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let line =
                |name: &str| info.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
            format!("{model} {} {} {}", line("model name"), line("stepping"), line("flags"))
        }
    }
}

/// Why the guest images cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file that names them, or one of them, cannot be read.
    #[error("there are no guest images at {path}: run `make images`")]
    Missing {
        /// Where they should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not what `images/build` writes.
    #[error("{path} is not what images/build writes: run `make images`")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The guest images that `images/build` published last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSet {
    /// The files.
    pub files: BootFiles,
    /// SHA-256 of the root filesystem.
    pub rootfs_sha256: String,
    /// What a capsule is flattened with: an archive that goes behind the initial RAM disk.
    pub flatten: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Current {
    kernel: PathBuf,
    initramfs: PathBuf,
    rootfs: PathBuf,
    upper: PathBuf,
    rootfs_sha256: String,
    flatten: Option<PathBuf>,
}

impl BootSet {
    /// Reads `current.json`.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let missing = |source| RecipeError::Missing { path: path.to_owned(), source };
        let bytes = fs::read(path).map_err(missing)?;
        let current: Current = serde_json::from_slice(&bytes)
            .map_err(|source| RecipeError::Syntax { path: path.to_owned(), source })?;
        let files = BootFiles {
            kernel: current.kernel,
            initramfs: current.initramfs,
            rootfs: current.rootfs,
            upper: current.upper,
            output: None,
        };
        for file in [&files.kernel, &files.initramfs, &files.rootfs, &files.upper] {
            fs::metadata(file).map_err(|source| RecipeError::Missing { path: file.clone(), source })?;
        }
        Ok(Self { files, rootfs_sha256: current.rootfs_sha256, flatten: current.flatten })
    }

    /// The same with another root filesystem.
    pub fn on(self, base: &BaseImage, rootfs: PathBuf) -> Self {
        let files = BootFiles { rootfs, ..self.files };
        Self { files, rootfs_sha256: base.sha256.clone(), ..self }
    }
}
