//! Two control groups: `system` is envd, `user` is everything else and may never push envd out of memory.

use crate::cgroup::Cgroup;
use std::{fs, io};

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Memory that user processes can never have, so that the kernel and envd go on: this, or a tenth when that is more.
const RESERVE_BYTES_MIN: u64 = 48 << 20;
/// Memory of envd's that is never reclaimed for others.
const SYSTEM_BYTES_MIN: u64 = 16 << 20;
/// Processes and threads of the user's at the same time: a fork bomb ends here.
const USER_PIDS_MAX: u32 = 2048;

/// What could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("the control group {0} cannot be set up")]
pub struct CgroupError(&'static str, #[source] io::Error);

/// The group of all user processes.
pub fn user() -> Cgroup {
    Cgroup::at(ROOT).child("user")
}

/// Makes the groups and moves this process into its own. Returns the users' limit of memory in bytes.
pub fn make() -> Result<u64, CgroupError> {
    let memory_max = user_memory_max(memory_total().map_err(at("/proc/meminfo"))?);
    let root = Cgroup::at(ROOT);
    root.write("cgroup.subtree_control", "+memory +pids +cpu").map_err(at("/"))?;
    make_system(&root.child("system")).map_err(at("system"))?;
    make_user(&user(), memory_max).map_err(at("user"))?;
    Ok(memory_max)
}

fn make_system(system: &Cgroup) -> io::Result<()> {
    system.make()?;
    system.write("memory.min", &SYSTEM_BYTES_MIN.to_string())?;
    system.write("memory.low", &SYSTEM_BYTES_MIN.to_string())?;
    // The default weight is 100: envd is heard when user code wants every cycle.
    system.write("cpu.weight", "1000")?;
    system.write("cgroup.procs", "0")
}

fn make_user(user: &Cgroup, memory_max: u64) -> io::Result<()> {
    user.make()?;
    user.write("memory.max", &memory_max.to_string())?;
    // One greedy process is killed, not all of them.
    user.write("memory.oom.group", "0")?;
    user.write("pids.max", &USER_PIDS_MAX.to_string())?;
    user.write("cgroup.subtree_control", "+memory +pids")
}

fn memory_total() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    parse_total(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no MemTotal"))
}

/// (pure) `MemTotal` of /proc/meminfo in bytes.
fn parse_total(meminfo: &str) -> Option<u64> {
    let kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(kib * 1024)
}

/// (pure) What user processes may have of `total` bytes.
fn user_memory_max(total: u64) -> u64 {
    total.saturating_sub(u64::max(RESERVE_BYTES_MIN, total / 10))
}

fn at(group: &'static str) -> impl Fn(io::Error) -> CgroupError {
    move |error| CgroupError(group, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_left_in_small_and_large_guests() {
        assert_eq!(parse_total("MemTotal:         494212 kB\nMemFree: 1 kB\n"), Some(494_212 * 1024));
        assert_eq!(user_memory_max(256 << 20), 208 << 20);
        assert_eq!(user_memory_max(1000 << 20), 900 << 20);
        assert_eq!(user_memory_max(1 << 20), 0);
    }
}
