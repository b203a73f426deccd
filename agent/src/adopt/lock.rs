//! One agent per data folder: a lock on a file in it, held as long as the agent's process lives.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, Instant},
};

/// A process that an agent was just starting when it was killed holds the agent's files for some milliseconds, until it
/// executes its program.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// The lock. Dropping it gives it up.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`. Refused, after a moment, while another process has it. Blocks.
    pub fn take(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if PATIENCE < start.elapsed() => {
                    let text = "another agent runs in this data folder: stop it first (hearth down)";
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path).unwrap();
        assert_eq!(Lock::take(&path).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        drop(Lock::take(&path).unwrap());
    }
}
