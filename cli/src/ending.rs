//! Ending a process that need not be a child of ours: signal it, and wait until it is gone.

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::time::{Duration, Instant};

/// Between two looks: a process that is no child announces nothing.
const PAUSE: Duration = Duration::from_millis(20);

/// How a process is ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// What it is sent.
    pub signal: Signal,
    /// How long it may take.
    pub deadline: Duration,
}

impl Ending {
    /// Sends the signal to `pid` and blocks while it `runs`. False when it still did at the deadline. A process that is
    /// gone already is no error.
    pub fn of(self, pid: i32, mut runs: impl FnMut() -> bool) -> Result<bool, Errno> {
        match kill(Pid::from_raw(pid), self.signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno),
        }
        let start = Instant::now();
        while runs() {
            if self.deadline < start.elapsed() {
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_ended_and_one_that_stays_is_told() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deaf = Ending { signal: Signal::SIGCONT, deadline: Duration::from_millis(50) };
        assert_eq!(deaf.of(pid, || matches!(child.try_wait(), Ok(None))), Ok(false));
        let term = Ending { signal: Signal::SIGTERM, deadline: Duration::from_secs(20) };
        assert_eq!(term.of(pid, || matches!(child.try_wait(), Ok(None))), Ok(true));
        assert_eq!(term.of(pid, || false), Ok(true), "gone already");
    }
}
