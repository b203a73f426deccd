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

/// (pure) The number of the line `NAME: N kB`, as the kernel writes it in /proc/meminfo, /proc/PID/status and
/// /proc/PID/smaps_rollup (proc(5)). None when there is no such line.
pub fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// A line of /proc/meminfo, in KiB: `MemTotal`; `MemAvailable`, the kernel's estimate of what can be had without swapping.
pub fn meminfo_kib(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/meminfo has no {name}"));
    kib_of(&text, name).ok_or_else(missing)
}

/// Private_Dirty of a process in KiB: memory that no other process shares and that must be kept
/// (/proc/PID/smaps_rollup, proc(5)). Walks the process's page tables, which takes milliseconds.
pub fn private_dirty_kb(pid: i32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kib_of(&text, "Private_Dirty")
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "smaps_rollup has no Private_Dirty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_by_its_whole_name() {
        let status = "VmRSS:\t 9 kB\nRssAnon:\t    44 kB\n";
        assert_eq!(
            (kib_of(status, "RssAnon"), kib_of(status, "Rss"), kib_of("", "RssAnon")),
            (Some(44), None, None)
        );
        assert!(meminfo_kib("MemAvailable").unwrap() > 0);
        assert!(meminfo_kib("Nothing").is_err());
    }

    #[test]
    fn this_process_has_private_memory() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(private_dirty_kb(pid).unwrap() > 0);
        assert!(private_dirty_kb(i32::MAX).is_err());
    }
}
