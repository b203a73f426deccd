//! How the runtimes are set up.

use std::{path::PathBuf, time::Duration};

/// Everything the runtimes need to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder for the kernels' program files; written at the first start of a kernel. The user must be able
    /// to read it.
    pub run_dir: PathBuf,
    /// Whom kernels run as; `None`: as this process.
    pub user: Option<User>,
    /// A cgroup v2 folder that this process may write to. Each kernel gets a child of it.
    pub cgroup: Option<PathBuf>,
    /// Limits per context.
    pub limits: Limits,
    /// The Python interpreter, with IPython installed.
    pub python: PathBuf,
}

impl Config {
    /// Kernels as this process, without a cgroup, with the default limits and `/usr/bin/python3`.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            user: None,
            cgroup: None,
            limits: Limits::default(),
            python: "/usr/bin/python3".into(),
        }
    }
}

/// An account in the guest.
#[derive(Debug, Clone)]
pub struct User {
    /// Numeric id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Login name.
    pub name: String,
    /// Home directory: where a kernel starts.
    pub home: PathBuf,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Limits of one context.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Memory of a kernel and its processes (`memory.max`); needs a cgroup.
    pub memory_bytes: Option<u64>,
    /// Processes and threads (`pids.max`); needs a cgroup.
    pub processes: Option<u32>,
    /// Runs that may wait in one context.
    pub queue: usize,
    /// How long a kernel may take to start.
    pub start: Duration,
    /// How long warming may take.
    pub warm: Duration,
    /// How long an interrupted run may take to come back before its kernel is killed.
    pub interrupt_grace: Duration,
    /// How long an idle kernel may take to confirm a reseed before it is killed.
    pub reseed: Duration,
}

impl Default for Limits {
    /// Generous where slow emulation needs it: nothing waits this long on a healthy machine.
    fn default() -> Self {
        Self {
            memory_bytes: None,
            processes: None,
            queue: 64,
            start: Duration::from_secs(60),
            warm: Duration::from_secs(300),
            interrupt_grace: Duration::from_millis(500),
            // Killing a kernel loses what it holds: only what will not answer at all is worth that.
            reseed: Duration::from_secs(15),
        }
    }
}
