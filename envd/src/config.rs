//! The command line: which role, and what the service may be told.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf};

/// The guest daemon of a Hearth capsule.
#[derive(Debug, Parser)]
#[command(name = "envd", version)]
pub struct Cli {
    /// The role.
    #[command(subcommand)]
    pub role: Role,
}

/// What envd is to be.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// PID 1 of the capsule: mounts, network, control groups, reaping, and the service kept alive.
    Init,
    /// The gRPC service.
    Service(ServiceConfig),
}

/// Settings of the service. The defaults are the guest's; tests have others.
#[derive(Debug, Clone, Args)]
pub struct ServiceConfig {
    /// Address to listen on instead of the capsule's own from the kernel command line.
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Control group (v2) of all user processes.
    #[arg(long, default_value = "/sys/fs/cgroup/user")]
    pub cgroup: PathBuf,
    /// Folder on a tmpfs for sockets and small files.
    #[arg(long, default_value = "/run/hearth")]
    pub run_dir: PathBuf,
    /// Whom kernels run as.
    #[arg(long, default_value = "user")]
    pub code_user: String,
    /// The Python of the kernels.
    #[arg(long, default_value = "/usr/bin/python3")]
    pub python: PathBuf,
    /// Where corrections of the time go.
    #[arg(long, value_enum, default_value_t = WhichClock::System)]
    pub clock: WhichClock,
}

/// Where corrections of the time go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhichClock {
    /// To the kernel's clock.
    System,
    /// To an offset beside it: for tests on a machine whose time is not theirs.
    Offset,
}
