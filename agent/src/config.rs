//! The agent's configuration.

use crate::{
    admission::Policy,
    disk::{
        size,
        store::{self, StoreFs},
    },
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
    /// Size of a capsule's disk when it is not asked for another: a number and M, Mi, G or Gi; at least 256Mi. Part of
    /// a template: another size builds it again.
    #[arg(
        long,
        env = "HEARTH_DEFAULT_DISK",
        default_value = "2Gi",
        value_parser = |text: &str| size::parse_mb("HEARTH_DEFAULT_DISK", text)
    )]
    pub default_disk: u64,
    /// What the file system of the capsules' disks keeps free, in MiB: with less, no new capsule is started.
    #[arg(long, env = "HEARTH_DISK_RESERVE_MB", default_value_t = 1024)]
    pub disk_reserve_mb: u64,
    /// What capsules' disks and snapshots are kept on: the data folder's file system, or an XFS of the agent's own in a
    /// sparse file there, on which copies share their blocks.
    #[arg(long, env = "HEARTH_STORE_FS", value_enum, default_value = "plain")]
    pub store_fs: StoreFs,
    /// Size of that XFS when it is made: a number and M, Mi, G or Gi; at least 1Gi.
    #[arg(
        long,
        env = "HEARTH_STORE_SIZE",
        default_value = "64Gi",
        value_parser = |text: &str| size::parse_mb("HEARTH_STORE_SIZE", text)
    )]
    pub store_size: u64,
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
    /// What becomes of capsules when the agent stops: they run on for the next agent (leave), are put on disk (pause),
    /// or end (destroy). Without it: leave for `hearth agent`, pause for `hearth up`.
    #[arg(long, env = "HEARTH_ON_STOP", value_enum)]
    pub on_stop: Option<OnStop>,
    /// Memory that stays free for the host itself, in MiB: with less, no capsule is started or resumed.
    #[arg(long, env = "HEARTH_MEMORY_RESERVE_MB", default_value_t = 512)]
    pub memory_reserve_mb: u64,
    /// Memory that is held for each capsule to grow into, in MiB. The guest's whole memory: no overcommit.
    #[arg(long, env = "HEARTH_CAPSULE_RESERVE_MB", default_value_t = 128)]
    pub capsule_reserve_mb: u64,
    /// Most virtual CPUs of all capsules, per processor of the host.
    #[arg(long, env = "HEARTH_CPU_OVERCOMMIT", default_value_t = 64)]
    pub cpu_overcommit: u32,
    /// First of the user ids that VMMs run as; the one before it is the pagers'.
    #[arg(long, env = "HEARTH_UID_BASE", default_value_t = 520_000)]
    pub uid_base: u32,
    /// Capsules' network.
    #[command(flatten)]
    pub network: NetworkConfig,
}

/// What becomes of capsules when the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnStop {
    /// They run on, and the next agent takes them over: an upgrade.
    Leave,
    /// Users' capsules are put on disk, and come back when they are used; others end. Nothing is left running.
    Pause,
    /// They end. Those that their users paused stay on disk.
    Destroy,
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
        if !(size::DISK_MB_MIN..=size::DISK_MB_MAX).contains(&self.default_disk) {
            faults.push(format!(
                "HEARTH_DEFAULT_DISK: {} MiB are not from {} to {} MiB",
                self.default_disk,
                size::DISK_MB_MIN,
                size::DISK_MB_MAX
            ));
        }
        if self.store_size < store::SIZE_MB_MIN {
            faults.push(format!(
                "HEARTH_STORE_SIZE: {} MiB are less than {} MiB",
                self.store_size,
                store::SIZE_MB_MIN
            ));
        }
        if self.max_capsules == 0 || 4096 < self.max_capsules {
            faults.push(format!("HEARTH_MAX_CAPSULES: {} is not from 1 to 4096", self.max_capsules));
        }
        if self.cpu_overcommit == 0 || 1024 < self.cpu_overcommit {
            faults.push(format!("HEARTH_CPU_OVERCOMMIT: {} is not from 1 to 1024", self.cpu_overcommit));
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

    /// By what capsules are admitted.
    pub fn policy(&self) -> Policy {
        Policy {
            capsules_max: self.max_capsules,
            memory_reserve_mb: self.memory_reserve_mb,
            capsule_reserve_mb: self.capsule_reserve_mb,
            cpu_overcommit: self.cpu_overcommit,
            disk_reserve_mb: self.disk_reserve_mb,
        }
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
    /// Whether disks and snapshots are on a file system of the agent's own.
    has_store: bool,
}

impl Layout {
    /// `dir` is Hearth's data folder (`HEARTH_DIR`), `cache` the folder of artefacts that are keyed by their content
    /// (`HEARTH_CACHE`). Looks whether the agent has a file system of its own there.
    pub fn new(dir: &Path, cache: &Path) -> Self {
        let layout = Self { dir: dir.to_owned(), cache: cache.to_owned(), has_store: false };
        layout.renewed()
    }

    /// The same, after the agent's own file system was made or removed.
    pub fn renewed(&self) -> Self {
        Self { has_store: self.store_image().exists(), ..self.clone() }
    }

    /// File with the agent's own file system, if it has one.
    pub fn store_image(&self) -> PathBuf {
        self.agent().join("store.xfs")
    }

    /// Where that is mounted.
    pub fn store(&self) -> PathBuf {
        self.agent().join("store")
    }

    /// Folder of what lies on it, if there is one.
    fn kept(&self) -> PathBuf {
        if self.has_store { self.store() } else { self.agent() }
    }

    /// The agent's folder.
    pub fn agent(&self) -> PathBuf {
        self.dir.join("agent")
    }

    /// Held by the one agent of this data folder.
    pub fn lock(&self) -> PathBuf {
        self.agent().join("lock")
    }

    /// The agent's gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.agent().join("agent.sock")
    }

    /// One folder per VMM.
    pub fn vmms(&self) -> PathBuf {
        self.kept().join("vmms")
    }

    /// One folder per capsule that could not be kept at a stop, until the next agent has told of it.
    pub fn failed(&self) -> PathBuf {
        self.agent().join("failed")
    }

    /// Generations of capsules: what paused ones are resumed from, and named snapshots.
    pub fn snapshots(&self) -> PathBuf {
        self.kept().join("snapshots")
    }

    /// One record per paused capsule.
    pub fn paused(&self) -> PathBuf {
        self.agent().join("paused")
    }

    /// What capsules used, a file each.
    pub fn usage(&self) -> PathBuf {
        self.agent().join("usage")
    }

    /// What ended lives of capsules wrote to their consoles, a file each.
    pub fn consoles(&self) -> PathBuf {
        self.agent().join("consoles")
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

    /// Base images that were made of capsules.
    pub fn bases(&self) -> PathBuf {
        self.cache.join("bases")
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
            default_disk: 100,
            disk_reserve_mb: 1024,
            store_fs: StoreFs::Plain,
            store_size: 100,
            parked: 100,
            prefetch: true,
            max_capsules: 0,
            on_stop: None,
            memory_reserve_mb: 0,
            capsule_reserve_mb: 0,
            cpu_overcommit: 0,
            uid_base: 0,
            network: NetworkConfig { egress: true, ready_slots: 257, dns: Vec::new() },
        };
        let text = config.check(Path::new("relative")).unwrap_err().to_string();
        for name in [
            "MEMORY_MB",
            "VCPUS",
            "DEFAULT_DISK",
            "STORE_SIZE",
            "IMAGE_BUDGET_MB",
            "PARKED",
            "MAX_CAPSULES",
            "CPU_OVERCOMMIT",
            "UID_BASE",
            "HEARTH_DIR",
            "READY_SLOTS",
        ] {
            assert!(text.contains(name), "{name} in {text}");
        }
    }
}
