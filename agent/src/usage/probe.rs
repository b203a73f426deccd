//! Reads what one VMM uses, from /proc and its files: some 100 µs a capsule, and no guest notices.

use super::{history::Sample, kib_of};
use crate::{
    network::plan,
    vmm::{machine::GuestNetwork, process::Process},
};
use std::{fs, io, os::unix::fs::MetadataExt, path::PathBuf};

/// Where a VMM's use is read.
#[derive(Debug, Clone)]
pub struct Probe {
    /// VMM first, then its pager: pid and start time, which name a process for good.
    processes: Vec<(i32, u64)>,
    upper: PathBuf,
    stats: PathBuf,
    ticks_per_second: u64,
}

/// What a process used (proc_pid_stat(5), proc_pid_status(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct OfProcess {
    cpu_us: u64,
    private_bytes: u64,
    shared_bytes: u64,
}

impl Probe {
    /// For these processes, VMM first; `upper` is the writable layer, `stats` the pager's counters.
    pub fn new<'a>(processes: impl Iterator<Item = &'a Process>, upper: PathBuf, stats: PathBuf) -> Self {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
        Self {
            processes: processes.map(|process| (process.pid(), process.start_ticks())).collect(),
            upper,
            stats,
            ticks_per_second: ticks.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100).max(1),
        }
    }

    /// What is used now. An error when the VMM is gone. Blocks for some 100 µs.
    pub fn sample(&self, at_ms: i64) -> io::Result<Sample> {
        let mut sample = Sample { at_ms, ..Sample::default() };
        for (index, (pid, start)) in self.processes.iter().enumerate() {
            let used = match self.process(*pid, *start) {
                Ok(used) => used,
                // A pager that is gone is told by its end, not here.
                Err(_) if index != 0 => continue,
                Err(error) => return Err(error),
            };
            sample.cpu_us += used.cpu_us;
            sample.private_bytes += used.private_bytes;
            if index == 0 {
                sample.shared_bytes = used.shared_bytes;
                let links = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
                (sample.received_bytes, sample.sent_bytes) = link(&links, GuestNetwork::TAP);
            }
        }
        sample.disk_bytes = fs::metadata(&self.upper)?.blocks() * 512;
        Ok(sample)
    }

    /// Bytes that the guest received and sent on its way out, beside those between it and the host. `None` when it has no
    /// way out. An error when the VMM is gone.
    pub fn egress(&self) -> io::Result<Option<(u64, u64)>> {
        let Some((pid, _)) = self.processes.first() else { return Ok(None) };
        Ok(counters(&fs::read_to_string(format!("/proc/{pid}/net/dev"))?, plan::UP))
    }

    /// The pager's counters.
    pub fn pager(&self) -> io::Result<crate::memory::stats::Stats> {
        crate::memory::stats::Stats::read(&self.stats)
    }

    fn process(&self, pid: i32, start: u64) -> io::Result<OfProcess> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (ticks, started) = times(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        if started != start {
            return Err(io::ErrorKind::NotFound.into());
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let bytes = |name: &str| kib_of(&status, name).unwrap_or(0) << 10;
        Ok(OfProcess {
            cpu_us: ticks * 1_000_000 / self.ticks_per_second,
            private_bytes: bytes("RssAnon") + bytes("VmSwap"),
            shared_bytes: bytes("RssShmem"),
        })
    }
}

/// (pure) User and system time, and start time, in ticks: fields 14, 15 and 22 of /proc/PID/stat.
fn times(stat: &str) -> Option<(u64, u64)> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(14)? + field(15)?, field(22)?))
}

/// (pure) What the guest received and sent on its own link, from /proc/PID/net/dev: what the host sent is what it received.
fn link(table: &str, name: &str) -> (u64, u64) {
    let (received, sent) = counters(table, name).unwrap_or_default();
    (sent, received)
}

/// (pure) Bytes that a link received and sent, from /proc/PID/net/dev. `None` when there is no such link.
fn counters(table: &str, name: &str) -> Option<(u64, u64)> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = line.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
    let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
    Some((number(0), number(8)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![1; 64 << 10]).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _guard = runtime.enter();
        let process = Process::open(std::process::id() as i32).unwrap();
        let stats = file.path().with_extension("none");
        let probe = Probe::new([&process].into_iter(), file.path().to_owned(), stats);
        let start = std::time::Instant::now();
        let mut number = 1_u64;
        let sample = loop {
            number = std::hint::black_box(number.wrapping_mul(3));
            let sample = probe.sample(5).unwrap();
            if 0 < sample.cpu_us || 10 < start.elapsed().as_secs() {
                break sample;
            }
        };
        assert!(sample.cpu_us > 0 && sample.private_bytes > 0 && sample.at_ms == 5, "{sample:?}");
        assert!(sample.disk_bytes >= 64 << 10, "{sample:?}");
        assert_eq!(probe.pager().unwrap(), crate::memory::stats::Stats::default());
    }

    #[test]
    fn another_process_of_the_same_number_is_not_measured() {
        let pid = std::process::id() as i32;
        let probe = Probe {
            processes: vec![(pid, 1)],
            upper: PathBuf::from("/dev/null"),
            stats: PathBuf::from("/dev/null"),
            ticks_per_second: 100,
        };
        assert!(probe.sample(1).is_err());
    }

    #[test]
    fn the_kernels_tables_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4 5 0 0 0 150 50 0 0 20 0 1 0 4711 9 9";
        assert_eq!(times(stat), Some((200, 4711)));
        assert_eq!(times("nonsense"), None);
        let table =
            "Inter-| Receive\n face |bytes\n    lo: 1 2 3\n  tap0: 100 1 0 0 0 0 0 0 2000 3 0 0 0 0 0 0\n";
        assert_eq!(link(table, "tap0"), (2000, 100));
        assert_eq!(link(table, "tap1"), (0, 0));
        assert_eq!(counters(table, "tap0"), Some((100, 2000)));
        assert_eq!(counters(table, "up"), None);
    }
}
