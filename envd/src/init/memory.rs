//! Ends thrashing: when what cannot be reclaimed fills the users' memory, the kernel's own choice of a victim is made now.
//!
//! A capsule has no swap. Near the limit the kernel goes on taking the last pages of program text from processes that
//! need them again at once, and calls that progress: a greedy process was killed only after 10 to 40 s in which
//! nothing else ran (measured under emulation, 512 MiB, Linux 6.12). Pressure stall information hardly shows it.

use super::{cgroups, console};
use crate::cgroup::{self, Cgroup};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::{
    fs::File,
    io::{self, Read, Seek},
    os::fd::AsFd,
    thread,
    time::Duration,
};

/// Less than this for program text and files is thrashing, or a tenth of the limit when that is more: a Python with
/// numpy and pandas runs from 30 MiB of them.
const FILES_BYTES_MIN: u64 = 24 << 20;
/// How far the limit goes below what is in use, so that a kill is the only way out.
const SQUEEZE_BYTES: u64 = 16 << 20;
/// Time between two looks, since a capsule that reads large files is at its limit all the time, and rightly so.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Watches on a thread of its own, as the kernel kills while the limit is being written. To be called with the signals
/// of PID 1 blocked, which threads inherit.
pub fn watch(limit: u64) -> io::Result<()> {
    let users = cgroups::user();
    let mut events = File::open(users.path().join("memory.events"))?;
    let watcher = move || {
        if let Err(error) = run(&users, &mut events, limit) {
            console::say(&format!("memory is not watched any more: {error}"));
        }
    };
    thread::Builder::new().name("memory".to_owned()).stack_size(64 << 10).spawn(watcher).map(drop)
}

fn run(users: &Cgroup, events: &mut File, limit: u64) -> io::Result<()> {
    let files_min = u64::max(FILES_BYTES_MIN, limit / 10);
    let mut seen = 0;
    loop {
        // The kernel marks the file with POLLPRI when a count in it changes. Reading takes the mark off, so it comes
        // before the look: what happens after it is seen in the next round.
        let times = times_at_limit(events)?;
        let firm = firm_bytes(&users.read("memory.stat")?);
        if seen < times && limit < firm + files_min {
            users.write("memory.max", &firm.saturating_sub(SQUEEZE_BYTES).to_string())?;
            users.write("memory.max", &limit.to_string())?;
            // The lower limit was hit too; that is no reason for a second kill.
            seen = times_at_limit(events)?;
        } else {
            seen = times;
        }
        match nix::poll::poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        thread::sleep(LOOK_PAUSE);
    }
}

/// How often the limit was reached, by memory.events.
fn times_at_limit(events: &mut File) -> io::Result<u64> {
    let mut text = String::new();
    events.rewind()?;
    events.read_to_string(&mut text)?;
    Ok(cgroup::value(&text, "max").unwrap_or(0))
}

/// (pure) What a group without swap cannot give back, by its memory.stat.
fn firm_bytes(stat: &str) -> u64 {
    let value = |key: &str| cgroup::value(stat, key).unwrap_or(0);
    (value("anon") + value("shmem") + value("kernel")).saturating_sub(value("slab_reclaimable"))
}

#[cfg(test)]
mod tests {
    use super::firm_bytes;

    #[test]
    fn files_and_caches_are_not_firm() {
        let stat =
            "anon 1000\nfile 500\nkernel 100\nkernel_stack 16\nshmem 30\nanon_thp 7\nslab_reclaimable 60\n";
        assert_eq!(firm_bytes(stat), 1070);
        assert_eq!(firm_bytes(""), 0);
    }
}
