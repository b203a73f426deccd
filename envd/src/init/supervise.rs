//! PID 1's endless part: keep the service alive, reap orphans, end the capsule when told to.

use super::{cgroups, console, memory, power};
use crate::process::environment::PATH;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    convert::Infallible,
    io,
    os::fd::AsFd,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A service that lived this long was well; its next death is the first of a new row.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// Deaths in a row after which nothing will help.
const DEATHS_MAX: u32 = 8;
/// Pause before the second restart in a row; it doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Wait for processes to end after they were asked to, and again after they were made to.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Why PID 1 gives up.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
    /// Memory cannot be watched.
    #[error("memory cannot be watched")]
    Memory(#[source] io::Error),
    /// The service cannot be started.
    #[error("the service cannot be started")]
    Start(#[source] io::Error),
    /// The service does not stay alive.
    #[error("the service died {DEATHS_MAX} times in a row")]
    Dies,
}

/// The service as PID 1 sees it.
enum Service {
    Running {
        pid: Pid,
        since: Instant,
    },
    /// Dead; to be started at this time.
    Due(Instant),
}

/// Supervises until the capsule ends. `memory_max` is the users' limit in bytes.
pub fn supervise(memory_max: u64) -> Result<Infallible, SuperviseError> {
    let mut wanted = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR] {
        wanted.add(signal);
    }
    let blocked = wanted
        .thread_block()
        .and_then(|()| SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK));
    let signals = blocked.map_err(|errno| SuperviseError::Signals(errno.into()))?;
    memory::watch(memory_max).map_err(SuperviseError::Memory)?;
    let mut deaths = 0;
    let mut service = start()?;
    loop {
        let timeout = match service {
            Service::Running { .. } => PollTimeout::NONE,
            Service::Due(at) => match at.checked_duration_since(Instant::now()) {
                Some(left) if Duration::ZERO < left => {
                    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
                }
                _ => {
                    service = start()?;
                    continue;
                }
            },
        };
        match nix::poll::poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(SuperviseError::Signals(errno.into())),
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                end();
            }
        }
        for died in reap() {
            if let Service::Running { pid, since } = service
                && died.pid() == Some(pid)
            {
                console::say(&format!("the service ended: {died:?}"));
                deaths = if WELL_AFTER < since.elapsed() { 1 } else { deaths + 1 };
                kill_users();
                service = Service::Due(Instant::now() + pause(deaths).ok_or(SuperviseError::Dies)?);
            }
        }
    }
}

/// (pure) How long to wait after so many deaths in a row; `None` to give up.
fn pause(deaths: u32) -> Option<Duration> {
    match deaths {
        0 | 1 => Some(Duration::ZERO),
        2..DEATHS_MAX => Some(PAUSE_FIRST * 2_u32.pow(deaths - 2)),
        _ => None,
    }
}

fn start() -> Result<Service, SuperviseError> {
    let program = std::env::current_exe().map_err(SuperviseError::Start)?;
    let mut command = Command::new(program);
    command.arg("service").env_clear().stdin(Stdio::null());
    command.envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")]);
    let child = command.spawn().map_err(SuperviseError::Start)?;
    let pid =
        i32::try_from(child.id()).map_err(|_| SuperviseError::Start(io::ErrorKind::InvalidData.into()))?;
    // Dropping the handle neither kills nor waits: the service is reaped with everyone else.
    Ok(Service::Running { pid: Pid::from_raw(pid), since: Instant::now() })
}

/// Reaps everything that has ended: the service, and orphans of user processes.
fn reap() -> impl Iterator<Item = WaitStatus> {
    std::iter::from_fn(|| {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(status) => return Some(status),
            }
        }
    })
}

/// What a dead service leaves behind is nobody's: its processes cannot be reached any more.
fn kill_users() {
    let users = cgroups::user();
    let ended = users.kill().and_then(|()| users.thaw()).and_then(|()| users.wait_empty(END_LIMIT));
    match ended {
        Ok(true) => {}
        Ok(false) => console::say("some processes of the dead service do not end"),
        Err(error) => console::say(&format!("processes of the dead service are left: {error}")),
    }
}

/// Ends the capsule: everyone is asked, then made to end, then the disk is written.
fn end() -> ! {
    let users = cgroups::user();
    // Frozen processes would not hear it.
    let _ = users.thaw();
    // Everyone but PID 1, the service among them; with nobody left the call fails, and that is all right.
    let _ = kill(Pid::from_raw(-1), Signal::SIGTERM);
    let _ = users.wait_empty(END_LIMIT);
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let _ = users.wait_empty(END_LIMIT);
    power::off()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_come_slower_and_end() {
        let pauses: Vec<_> = (1..10).map(|deaths| pause(deaths).map(|pause| pause.as_millis())).collect();
        assert_eq!(pauses[..3], [Some(0), Some(100), Some(200)]);
        assert_eq!((pauses[6], pauses[7], pauses[8]), (Some(3200), None, None));
    }
}
