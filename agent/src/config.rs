//! The agent's configuration.

use crate::{
    engine::{EngineChoice, Programs},
    network::config::NetworkConfig,
    vmm::machine::Size,
};
use std::path::{Path, PathBuf};

/// Settings of an agent. Every path below its folder derives from `dir`.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentConfig {
    /// How capsules are executed.
    #[arg(long = "engine", env = "HEARTH_ENGINE", value_enum, default_value = "auto")]
    pub engine: EngineChoice,
    /// Their programs.
    #[command(flatten)]
    pub programs: Programs,
    /// Guest memory of the template `code`, in MiB: 256 to 65536.
    #[arg(long, env = "HEARTH_MEMORY_MB", default_value_t = 1024)]
    pub memory_mb: u64,
    /// Virtual CPUs of the template `code`: 1 to 16.
    #[arg(long, env = "HEARTH_VCPUS", default_value_t = 1)]
    pub vcpus: u32,
    /// Size of the tmpfs that holds memory images and template builds, in MiB.
    #[arg(long, env = "HEARTH_IMAGE_BUDGET_MB", default_value_t = 4096)]
    pub image_budget_mb: u64,
    /// VMM processes that wait for a snapshot, per template.
    #[arg(long, env = "HEARTH_PARKED", default_value_t = 2)]
    pub parked: usize,
    /// Whether a fresh memory image is filled with the template's working set when its first capsule is restored:
    /// true or false. Without it, pages come only as they are touched.
    #[arg(long, env = "HEARTH_PREFETCH", default_value_t = true, action = clap::ArgAction::Set)]
    pub prefetch: bool,
    /// Most capsules on this host.
    #[arg(long, env = "HEARTH_MAX_CAPSULES", default_value_t = 100)]
    pub max_capsules: usize,
    /// First of the user ids that VMMs run as; the one before it is the pagers'.
    #[arg(long, env = "HEARTH_UID_BASE", default_value_t = 520_000)]
    pub uid_base: u32,
    /// Capsules' network.
    #[command(flatten)]
    pub network: NetworkConfig,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigError(Vec<String>);

/// Longest socket path that fits `sockaddr_un` with the longest name we make below `dir`.
const DIR_BYTES_MAX: usize = 50;

impl AgentConfig {
    /// Checks ranges; every fault is reported.
    pub fn check(&self, dir: &Path) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        if !(256..=65_536).contains(&self.memory_mb) || !self.memory_mb.is_multiple_of(64) {
            faults.push(format!(
                "HEARTH_MEMORY_MB: {} is not a multiple of 64 from 256 to 65536",
                self.memory_mb
            ));
        }
        if !(1..=16).contains(&self.vcpus) {
            faults.push(format!("HEARTH_VCPUS: {} is not from 1 to 16", self.vcpus));
        }
        if self.image_budget_mb < self.memory_mb * 2 {
            faults.push(format!(
                "HEARTH_IMAGE_BUDGET_MB: {} is less than twice HEARTH_MEMORY_MB: a template build and an image must \
                 fit",
                self.image_budget_mb
            ));
        }
        if self.max_capsules == 0 || 4096 < self.max_capsules {
            faults.push(format!("HEARTH_MAX_CAPSULES: {} is not from 1 to 4096", self.max_capsules));
        }
        if 64 < self.parked {
            faults.push(format!("HEARTH_PARKED: {} is not from 0 to 64", self.parked));
        }
        if self.uid_base < 1001 {
            faults.push(format!("HEARTH_UID_BASE: {} would mix with people's user ids", self.uid_base));
        }
        faults.extend(self.network.faults(self.max_capsules));
        if !dir.is_absolute() || DIR_BYTES_MAX < dir.as_os_str().len() {
            faults.push(format!(
                "HEARTH_DIR: `{}` is not an absolute path of at most {DIR_BYTES_MAX} bytes (socket paths are short)",
                dir.display()
            ));
        }
        if faults.is_empty() { Ok(()) } else { Err(ConfigError(faults)) }
    }

    /// Size of the machines of the template `code`.
    pub fn size(&self) -> Size {
        Size { vcpus: self.vcpus, memory_mb: self.memory_mb }
    }
}

/// Where an agent keeps what.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
    cache: PathBuf,
}

impl Layout {
    /// `dir` is Hearth's data folder (`HEARTH_DIR`), `cache` the folder of artefacts that are keyed by their content
    /// (`HEARTH_CACHE`).
    pub fn new(dir: &Path, cache: &Path) -> Self {
        Self { dir: dir.to_owned(), cache: cache.to_owned() }
    }

    /// The agent's folder.
    pub fn agent(&self) -> PathBuf {
        self.dir.join("agent")
    }

    /// The agent's gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.agent().join("agent.sock")
    }

    /// One folder per VMM.
    pub fn vmms(&self) -> PathBuf {
        self.agent().join("vmms")
    }

    /// Generations of capsules: what paused ones are resumed from, and named snapshots.
    pub fn snapshots(&self) -> PathBuf {
        self.agent().join("snapshots")
    }

    /// One record per paused capsule.
    pub fn paused(&self) -> PathBuf {
        self.agent().join("paused")
    }

    /// Mount point of the tmpfs for memory images.
    pub fn images(&self) -> PathBuf {
        self.agent().join("images")
    }

    /// Empty folder that jails are mounted on.
    pub fn jail(&self) -> PathBuf {
        self.agent().join("jail")
    }

    /// File that keeps the router's network namespace.
    pub fn router(&self) -> PathBuf {
        self.agent().join("router.netns")
    }

    /// File with this host's id.
    pub fn host_id(&self) -> PathBuf {
        self.agent().join("host-id")
    }

    /// Snapshots of templates: keyed by content, so that data folders share them.
    pub fn templates(&self) -> PathBuf {
        self.cache.join("templates")
    }

    /// What `images/build` published last.
    pub fn boot_files(&self) -> PathBuf {
        self.cache.join("images/current.json")
    }

    /// Marks every VMM of this data folder on its command line.
    pub fn mark(&self) -> String {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(self.dir.as_os_str().as_encoded_bytes());
        format!("hearth-{}-", hex::encode(&digest[..4]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_reported_at_once() {
        let config = AgentConfig {
            engine: EngineChoice::Auto,
            programs: Programs {
                qemu: PathBuf::from("/usr/bin/qemu-system-x86_64"),
                firecracker: PathBuf::from("/usr/local/bin/firecracker"),
                jailer: PathBuf::from("/usr/local/bin/jailer"),
            },
            memory_mb: 100,
            vcpus: 0,
            image_budget_mb: 1,
            parked: 100,
            prefetch: true,
            max_capsules: 0,
            uid_base: 0,
            network: NetworkConfig { egress: true, ready_slots: 257, dns: Vec::new() },
        };
        let text = config.check(Path::new("relative")).unwrap_err().to_string();
        for name in [
            "MEMORY_MB",
            "VCPUS",
            "IMAGE_BUDGET_MB",
            "PARKED",
            "MAX_CAPSULES",
            "UID_BASE",
            "HEARTH_DIR",
            "READY_SLOTS",
        ] {
            assert!(text.contains(name), "{name} in {text}");
        }
    }
}
