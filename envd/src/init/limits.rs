//! Kernel settings and process limits that every process of the capsule inherits.

use super::console;
use nix::sys::resource::{Resource, setrlimit};
use std::{fs, io};

/// Open files: what servers ask for today, and the kernel's own ceiling.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);
/// The kernel never chooses this process, nor its children that do not raise their score.
const OOM_SCORE_NEVER: &str = "-1000";

const SETTINGS: [(&str, &str); 4] = [
    ("/proc/self/oom_score_adj", OOM_SCORE_NEVER),
    // The console is an emulated serial port, byte by byte: only what nobody may miss goes there.
    ("/proc/sys/kernel/printk", "3 4 1 3"),
    // The table of all processes is printed to the kernel's log with every kill; nobody reads it here.
    ("/proc/sys/vm/oom_dump_tasks", "0"),
    // ping without privileges.
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Applies them. None is needed to serve, so a kernel without one gets a line on the console and no more.
pub fn set() {
    for (path, value) in SETTINGS {
        if let Err(error) = fs::write(path, value) {
            console::say(&format!("{path} is not set: {error}"));
        }
    }
    if let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1) {
        console::say(&format!("the limit of open files is not set: {}", io::Error::from(errno)));
    }
}
