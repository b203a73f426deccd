//! A kernel's process: spawned as the user, in its own session and cgroup; interrupted, killed, reaped.

use super::cgroup::Cgroup;
use crate::{config::Config, language::Command as Recipe};
use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::signal::{Signal, killpg},
    unistd::{Gid, Pid, Uid, pipe2, setgid, setgroups, setsid, setuid, write},
};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};
use tokio::process::{Child, Command};

/// The search path of a login shell on Debian.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Before user code, the kernel of the guest should spare everything else.
const OOM_SCORE: &[u8] = b"500";

/// The process of one kernel. Dropping it kills it and its group.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    group: Pid,
    cgroup: Option<Cgroup>,
    status: Option<ExitStatus>,
    killed: bool,
}

/// Starts a kernel; returns our ends of its socket, its stdout and its stderr.
pub(super) fn spawn(
    config: &Config,
    recipe: &Recipe,
    name: &str,
    window: &File,
) -> io::Result<(Process, UnixStream, [OwnedFd; 2])> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let (stdout, stdout_writer) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, stderr_writer) = pipe2(OFlag::O_CLOEXEC)?;
    for pipe in [&stdout, &stderr] {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let cgroup =
        config.cgroup.as_deref().map(|parent| Cgroup::new(parent, name, &config.limits)).transpose()?;
    let (home, env) = environment(config, recipe);
    let mut command = Command::new(&recipe.program);
    command
        .args(&recipe.arguments)
        .args([theirs.as_raw_fd().to_string(), window.as_raw_fd().to_string()])
        .env_clear()
        .envs(env)
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(stdout_writer)
        .stderr(stderr_writer)
        .kill_on_drop(true);
    let entry = Entry {
        inherited: [theirs.as_raw_fd(), window.as_raw_fd()],
        procs: cgroup.as_ref().map(Cgroup::procs).transpose()?,
        account: config.user.as_ref().map(|user| {
            let groups = user.groups.iter().map(|&group| Gid::from_raw(group)).collect();
            (Uid::from_raw(user.uid), Gid::from_raw(user.gid), groups)
        }),
    };
    #[expect(unsafe_code, reason = "pre_exec is the only way to act between fork and exec")]
    // SAFETY: the closure runs in the forked child; it makes system calls only, does not allocate and takes
    // no lock (its values were made before the fork).
    unsafe {
        command.pre_exec(move || entry.enter());
    }
    let child = command.spawn()?;
    drop(theirs);
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(|| io::Error::other("no pid"))?;
    let process = Process { child, group: Pid::from_raw(pid), cgroup, status: None, killed: false };
    Ok((process, ours, [stdout, stderr]))
}

/// What the child does to itself before it becomes the kernel.
struct Entry {
    inherited: [RawFd; 2],
    procs: Option<File>,
    account: Option<(Uid, Gid, Vec<Gid>)>,
}

impl Entry {
    fn enter(&self) -> io::Result<()> {
        setsid()?;
        for fd in self.inherited {
            #[expect(unsafe_code, reason = "the descriptors are known by number only after the fork")]
            // SAFETY: both stay open in the parent until the spawn has returned, so here they are open too.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        // Before the account changes: the right to move comes from who opened the file.
        if let Some(procs) = &self.procs {
            write(procs.as_fd(), b"0")?;
        }
        if let Ok(file) =
            nix::fcntl::open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY, nix::sys::stat::Mode::empty())
        {
            // Without it, the memory limit of the cgroup still holds.
            let _best_effort = write(&file, OOM_SCORE);
        }
        if let Some((uid, gid, groups)) = &self.account {
            setgroups(groups)?;
            setgid(*gid)?;
            setuid(*uid)?;
        }
        Ok(())
    }
}

fn environment(config: &Config, recipe: &Recipe) -> (PathBuf, Vec<(&'static str, String)>) {
    let (name, home) = match &config.user {
        Some(user) => (user.name.clone(), user.home.clone()),
        None => {
            let home = std::env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from);
            (std::env::var("USER").unwrap_or_else(|_| "root".into()), home)
        }
    };
    let home = if home.is_dir() { home } else { "/".into() };
    let shell = ["/bin/bash", "/bin/sh"].into_iter().find(|shell| Path::new(shell).exists());
    // The interpreter's own folder first: `python` and `pip` of a virtual environment.
    let path = match recipe.program.parent() {
        Some(folder) if !PATH.split(':').any(|known| Path::new(known) == folder) => {
            format!("{}:{PATH}", folder.display())
        }
        Some(_) | None => PATH.into(),
    };
    let mut env = vec![
        ("PATH", path),
        ("HOME", home.display().to_string()),
        ("USER", name.clone()),
        ("LOGNAME", name),
        ("SHELL", shell.unwrap_or("/bin/sh").into()),
        ("LANG", "C.UTF-8".into()),
        // Nobody looks at a terminal: no colours, no pagers.
        ("TERM", "dumb".into()),
        ("PAGER", "cat".into()),
        ("GIT_PAGER", "cat".into()),
    ];
    env.extend(recipe.env.iter().map(|&(name, value)| (name, value.to_owned())));
    (home, env)
}

impl Process {
    pub(super) fn pid(&self) -> i32 {
        self.group.as_raw()
    }

    /// Waits for the end of the kernel process itself.
    ///
    /// # Cancel safety
    /// May be dropped and called again; the status is kept.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let status = self.child.wait().await?;
        self.status = Some(status);
        Ok(status)
    }

    /// SIGINT to the process group.
    pub(super) fn interrupt(&self) {
        if self.status.is_none()
            && let Err(error) = killpg(self.group, Signal::SIGINT)
        {
            tracing::debug!(%error, "kernel not interrupted");
        }
    }

    /// SIGKILL to everything that belongs to the kernel, once: later its numbers may be another's.
    pub(super) fn kill(&mut self) {
        if std::mem::replace(&mut self.killed, true) {
            return;
        }
        if let Some(cgroup) = &self.cgroup {
            match cgroup.kill() {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "cgroup.kill failed, killing the process group"),
            }
        }
        // The group's number stays taken as long as a member lives, also after the kernel itself is reaped.
        if let Err(error) = killpg(self.group, Signal::SIGKILL) {
            tracing::debug!(%error, "no process group left to kill");
        }
    }

    /// Processes that the memory limit has cost so far; `None` without a cgroup.
    pub(super) fn oom_kills(&mut self) -> Option<u64> {
        self.cgroup.as_mut()?.oom_kills()
    }

    /// The same, cheaper, for the time before a run.
    pub(super) fn oom_kills_before(&mut self) -> Option<u64> {
        self.cgroup.as_mut()?.oom_kills_before()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
