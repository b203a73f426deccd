//! Starts a process: user, groups, working directory, environment, session, control group.
//!
//! The only place in envd where a program of the user's is started.

#![expect(unsafe_code, reason = "pre_exec runs between fork and exec")]

use crate::user::User;
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
    unistd::{Gid, Uid, chdir, setgroups, setresgid, setresuid, setsid, write},
};
use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    process::Stdio,
};
use tokio::{
    net::unix::pipe,
    process::{Child, ChildStdin, Command},
};

/// Everything that is fixed before a process starts. No text may hold a NUL byte.
#[derive(Debug)]
pub struct Launch {
    /// Program; searched in the environment's `PATH` when it has no slash.
    pub program: String,
    /// Its arguments, without the program's name.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Absolute working directory.
    pub cwd: String,
    /// Whom it runs as.
    pub user: User,
    /// Open `cgroup.procs` of the group it enters before it runs.
    pub cgroup: OwnedFd,
}

/// A started process and our ends of its pipes.
#[derive(Debug)]
pub struct Running {
    /// The process, leader of its own session and process group.
    pub child: Child,
    /// Its standard input, when it has one.
    pub stdin: Option<ChildStdin>,
    /// Its standard output.
    pub stdout: pipe::Receiver,
    /// Its standard error.
    pub stderr: pipe::Receiver,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no such program (or its interpreter is missing).
    #[error("{program}: {source}")]
    NotFound {
        /// The program as asked for.
        program: String,
        /// What execve(2) said.
        source: io::Error,
    },
    /// The program is there but cannot be executed.
    #[error("{program}: {source}")]
    NotExecutable {
        /// The program as asked for.
        program: String,
        /// What execve(2) said.
        source: io::Error,
    },
    /// The user may not enter the working directory.
    #[error("cwd: the directory cannot be entered: {0}")]
    Cwd(#[source] io::Error),
    /// A step before the program failed.
    #[error("the process cannot be set up ({step:?})")]
    Setup {
        /// Which step.
        step: Step,
        /// Why.
        source: io::Error,
    },
    /// No pipe or no process could be made.
    #[error("no process can be made")]
    Spawn(#[source] io::Error),
}

/// What a new process does before it becomes the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    /// Enter its control group.
    Cgroup = 1,
    /// Make itself a better victim than envd when memory runs out.
    OomScore = 2,
    /// Lead a session and process group of its own.
    Session = 3,
    /// Become the user.
    User = 4,
    /// Enter the working directory, as the user.
    Cwd = 5,
    /// Take its terminal for the session's own.
    Terminal = 6,
}

/// The standard library reports a failed `pre_exec` by its error number alone. Linux's numbers are below 4096, so the
/// step travels above them.
const STEP_SHIFT: i32 = 12;

/// Starts the process; it reads from a pipe of ours if `stdin` is set, else from /dev/null. Blocks for the fork.
pub fn start(launch: Launch, stdin: bool) -> Result<Running, StartError> {
    let (stdout, child_stdout) = output_pipe().map_err(StartError::Spawn)?;
    let (stderr, child_stderr) = output_pipe().map_err(StartError::Spawn)?;
    let mut command = Command::new(&launch.program);
    let stdin = if stdin { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(child_stdout).stderr(child_stderr);
    let mut child = spawn(command, launch, Streams::Pipes)?;
    let stdin = child.stdin.take();
    Ok(Running { child, stdin, stdout, stderr })
}

/// Starts the process with this terminal as all of its streams. Blocks for the fork.
pub fn start_on(terminal: OwnedFd, launch: Launch) -> Result<Child, StartError> {
    let mut command = Command::new(&launch.program);
    let copy = || terminal.try_clone().map_err(StartError::Spawn);
    command.stdout(copy()?).stderr(copy()?).stdin(terminal);
    spawn(command, launch, Streams::Terminal)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Streams {
    Pipes,
    Terminal,
}

/// `command` ends here and with it our copies of the child's ends, without which its streams would never end.
fn spawn(mut command: Command, launch: Launch, streams: Streams) -> Result<Child, StartError> {
    command.args(&launch.args).env_clear().envs(&launch.env);
    let program = launch.program.clone();
    prepare(&mut command, launch, streams)?;
    command.spawn().map_err(|error| name(error, program))
}

fn output_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, child) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, child))
}

fn prepare(command: &mut Command, launch: Launch, streams: Streams) -> Result<(), StartError> {
    let cwd = CString::new(launch.cwd).map_err(|error| StartError::Cwd(error.into()))?;
    let (uid, gid) = (Uid::from_raw(launch.user.uid), Gid::from_raw(launch.user.gid));
    let groups: Vec<Gid> = launch.user.groups.iter().copied().map(Gid::from_raw).collect();
    let cgroup = launch.cgroup;
    let before_exec = move || -> io::Result<()> {
        at(Step::Cgroup, write(&cgroup, b"0").map(drop))?;
        at(Step::OomScore, raise_oom_score())?;
        at(Step::Session, setsid().map(drop))?;
        if streams == Streams::Terminal {
            at(Step::Terminal, control_terminal())?;
        }
        at(
            Step::User,
            setgroups(&groups)
                .and_then(|()| setresgid(gid, gid, gid))
                .and_then(|()| setresuid(uid, uid, uid)),
        )?;
        at(Step::Cwd, chdir(cwd.as_c_str()))
    };
    // SAFETY: the closure runs in the forked child of a process with several threads, so only async-signal-safe calls
    // are allowed. It makes plain system calls on values made before the fork and allocates nothing:
    // `io::Error::from_raw_os_error` holds a number, and nix takes `&CStr` and `&[Gid]` as they are (setgroups,
    // setresgid and setresuid are glibc's; their cross-thread part finds no other thread in the child).
    unsafe {
        command.pre_exec(before_exec);
    }
    Ok(())
}

/// Makes standard input, which is a terminal, that of the session. Only its leader can, and it has none yet.
fn control_terminal() -> nix::Result<()> {
    // SAFETY: TIOCSCTTY takes a number and touches no memory; ioctl(2) is a plain system call.
    nix::errno::Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }).map(drop)
}

fn raise_oom_score() -> nix::Result<()> {
    let file = open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(file.as_fd(), b"500").map(drop)
}

fn at(step: Step, result: nix::Result<()>) -> io::Result<()> {
    result.map_err(|errno| io::Error::from_raw_os_error((step as i32) << STEP_SHIFT | errno as i32))
}

/// Tells a failed step, a missing program and a failed fork apart.
fn name(error: io::Error, program: String) -> StartError {
    let Some(code) = error.raw_os_error() else { return StartError::Spawn(error) };
    let source = io::Error::from_raw_os_error(code & ((1 << STEP_SHIFT) - 1));
    let setup = |step| StartError::Setup {
        step,
        source: io::Error::from_raw_os_error(code & ((1 << STEP_SHIFT) - 1)),
    };
    match code >> STEP_SHIFT {
        1 => setup(Step::Cgroup),
        2 => setup(Step::OomScore),
        3 => setup(Step::Session),
        4 => setup(Step::User),
        5 => StartError::Cwd(source),
        6 => setup(Step::Terminal),
        _ => match code {
            libc::ENOENT | libc::ENOTDIR => StartError::NotFound { program, source },
            libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE => StartError::Spawn(source),
            _ => StartError::NotExecutable { program, source },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_is_told_from_a_failed_program() {
        let failed = |result| name(at(Step::User, result).unwrap_err(), "p".to_owned());
        assert!(matches!(
            failed(Err(nix::Error::EPERM)),
            StartError::Setup { step: Step::User, source } if source.raw_os_error() == Some(libc::EPERM)
        ));
        let exec = |code| name(io::Error::from_raw_os_error(code), "p".to_owned());
        assert!(matches!(exec(libc::ENOENT), StartError::NotFound { .. }));
        assert!(matches!(exec(libc::EACCES), StartError::NotExecutable { .. }));
        assert!(matches!(exec(libc::ENOEXEC), StartError::NotExecutable { .. }));
    }
}
