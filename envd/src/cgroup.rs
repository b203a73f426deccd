//! Control groups (v2): where user processes live, so that they can be limited, frozen, killed and counted as one.

use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A control group by its folder. It is not removed when this is dropped; see [`crate::process::table`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cgroup {
    path: PathBuf,
}

/// Why a group did not freeze.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// A file of the group could not be used.
    #[error("the control group's files cannot be used")]
    Io(#[from] io::Error),
    /// Some process did not stop in time.
    #[error("user processes did not freeze within {0:?}")]
    Deadline(Duration),
}

impl Cgroup {
    /// The group at `path`, which exists or will be made.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Makes the group unless it exists.
    pub fn make(&self) -> io::Result<()> {
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    /// Its child group `name`.
    pub fn child(&self, name: &str) -> Self {
        Self { path: self.path.join(name) }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one of its files.
    pub fn write(&self, file: &str, value: &str) -> io::Result<()> {
        // No O_CREAT: a controller that is not there must be an error, not a stray file.
        File::options().write(true).open(self.path.join(file))?.write_all(value.as_bytes())
    }

    /// Reads one of its files.
    pub fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.path.join(file))
    }

    /// Its open `cgroup.procs`: whoever writes "0" to it moves itself into the group.
    pub fn procs(&self) -> io::Result<OwnedFd> {
        Ok(File::options().write(true).open(self.path.join("cgroup.procs"))?.into())
    }

    /// Kills every process in it and below, also frozen ones (Linux 5.14).
    pub fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Lets its processes run on.
    pub fn thaw(&self) -> io::Result<()> {
        self.write("cgroup.freeze", "0")
    }

    /// Stops its processes and waits until all have stopped. Blocks up to `limit`.
    pub fn freeze(&self, limit: Duration) -> Result<(), FreezeError> {
        self.write("cgroup.freeze", "1")?;
        if self.wait_event("frozen", true, limit)? { Ok(()) } else { Err(FreezeError::Deadline(limit)) }
    }

    /// Waits until no process is left in it or below. Blocks up to `limit`; false when it passed.
    pub fn wait_empty(&self, limit: Duration) -> io::Result<bool> {
        self.wait_event("populated", false, limit)
    }

    /// Removes the group; false when it still has processes or children.
    pub fn remove(&self) -> io::Result<bool> {
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many of its own processes the kernel killed for want of memory. 0 without the memory controller.
    pub fn oom_kills(&self) -> u64 {
        let events = self.read("memory.events").unwrap_or_default();
        value(&events, "oom_kill").unwrap_or(0)
    }

    /// Waits on `cgroup.events`, which the kernel marks with POLLPRI whenever a value in it changes.
    fn wait_event(&self, key: &str, wanted: bool, limit: Duration) -> io::Result<bool> {
        let mut file = File::open(self.path.join("cgroup.events"))?;
        let deadline = Instant::now() + limit;
        let mut text = String::new();
        loop {
            text.clear();
            file.rewind()?;
            file.read_to_string(&mut text)?;
            if value(&text, key) == Some(u64::from(wanted)) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match nix::poll::poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// (pure) The value of `key` in a flat keyed file.
pub fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_keyed_files_are_read_by_whole_keys() {
        let text = "low 1\noom 2\noom_kill 3\noom_group_kill 4\n";
        assert_eq!(value(text, "oom_kill"), Some(3));
        assert_eq!(value(text, "oom"), Some(2));
        assert_eq!(value(text, "frozen"), None);
    }
}
