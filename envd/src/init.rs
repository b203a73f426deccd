//! What PID 1 does, in order: mounts, limits, control groups, network; then it keeps the service alive.

pub mod cgroups;
pub mod console;
pub mod limits;
pub mod memory;
pub mod mounts;
pub mod network;
pub mod power;
pub mod supervise;

use crate::cmdline::{CmdlineError, Network};
use cgroups::CgroupError;
use mounts::MountError;
use network::NetworkError;
use std::io;

/// The name until the first activation.
const HOSTNAME: &str = "hearth";

/// Why the capsule cannot come up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Not the first process.
    #[error("init is for PID 1")]
    NotFirst,
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The control groups cannot be made.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel's command line cannot be read.
    #[error("/proc/cmdline cannot be read")]
    ReadCmdline(#[source] io::Error),
    /// The kernel's command line has no usable network.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The network cannot be set up.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Signals or the service cannot be handled.
    #[error(transparent)]
    Supervise(#[from] supervise::SuperviseError),
}

/// Runs as PID 1; comes back only by powering the capsule off.
pub fn run() -> ! {
    if std::process::id() != 1 {
        console::say(&InitError::NotFirst.to_string());
        std::process::exit(1);
    }
    // A panic of PID 1 is the kernel's panic: say ours first.
    std::panic::set_hook(Box::new(|panic| {
        console::say(&format!("FATAL: {panic}"));
        power::off()
    }));
    let Err(error) = bring_up();
    power::fail(&error)
}

fn bring_up() -> Result<std::convert::Infallible, InitError> {
    mounts::mount_all()?;
    limits::set();
    let memory_max = cgroups::make()?;
    network::set_hostname(HOSTNAME)?;
    let cmdline = std::fs::read_to_string("/proc/cmdline").map_err(InitError::ReadCmdline)?;
    network::bring_up(&Network::parse(&cmdline)?)?;
    Ok(supervise::supervise(memory_max)?)
}
