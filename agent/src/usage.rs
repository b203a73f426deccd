//! What capsules use: processor time, memory, disk and network, sampled every few seconds and kept for a day.
//!
//! All of it is read on the host, from counters that the kernel keeps anyway: no guest is asked, so a parked one sleeps
//! on, and a hostile one cannot lie.

pub mod files;
pub mod history;
pub mod meter;
pub mod probe;
pub mod sampler;

use std::{fs, io};

/// Private_Dirty of a process in KiB: memory that no other process shares and that must be kept
/// (/proc/PID/smaps_rollup, proc(5)). Walks the process's page tables, which takes milliseconds.
pub fn private_dirty_kb(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Private_Dirty:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "smaps_rollup has no Private_Dirty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_private_memory() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(private_dirty_kb(pid).unwrap() > 0);
        assert!(private_dirty_kb(i32::MAX).is_err());
    }
}
