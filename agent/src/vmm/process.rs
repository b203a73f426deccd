//! Programs on the host: spawned into a jail, watched by pidfd, killed and reaped.
//!
//! A process is known by its pidfd from the moment it is spawned: no signal can meet another process that got the
//! same pid. There is no parent-death signal: VMMs and pagers outlive the agent; the ledger finds them again.

#![expect(unsafe_code, reason = "fork, namespaces and mounts between fork and exec; pidfds")]

use super::jail::{Jail, Prepared, c_path};
use std::{
    ffi::{CStr, CString, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    ptr,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Inherited descriptors are moved out of the way of their targets first.
const FD_ASIDE: RawFd = 64;
/// Who the kernel ends first when the host's memory is used up (proc_pid_oom_score_adj(5)): the higher, the sooner.
pub mod oom_score {
    /// A VMM: one capsule is lost, and with it the most memory.
    pub const VMM: i16 = 500;
    /// A pager, whose end costs a capsule too but frees little.
    pub const PAGER: i16 = 400;
    /// The agent, without which nothing goes on.
    pub const AGENT: i16 = -500;
}

/// Open files that a VMM or pager may have.
const OPEN_FILES_MAX: u64 = 1024;

/// What to start.
#[derive(Debug)]
pub struct Program {
    /// Absolute path, in the jail if there is one.
    pub path: PathBuf,
    /// Arguments.
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(&'static str, OsString)>,
    /// Standard input; nothing when absent.
    pub stdin: Option<OwnedFd>,
    /// Standard error, and standard output unless `output` is there.
    pub log: File,
    /// Standard output.
    pub output: Option<File>,
    /// Descriptors to inherit and the numbers they get (3 to 63).
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// What it starts in when it confines itself.
    pub surroundings: Option<Surroundings>,
    /// Where it is confined.
    pub jail: Option<Jail>,
    /// One of [`oom_score`].
    pub oom_score: i16,
}

/// Namespaces for a program that confines itself.
#[derive(Debug)]
pub struct Surroundings {
    /// The network namespace.
    pub network: OwnedFd,
    /// Files that it finds at other places, in a mount namespace of its own.
    pub mounts: Vec<Mount>,
}

/// A file that is seen at another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The file.
    pub source: PathBuf,
    /// An existing file that it covers.
    pub target: PathBuf,
}

/// A child process, or one adopted by its pid.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    start_ticks: u64,
    pidfd: AsyncFd<OwnedFd>,
}

impl Surroundings {
    fn prepare(self) -> io::Result<(OwnedFd, Vec<(CString, CString)>)> {
        let mounts = self.mounts.iter().map(|mount| Ok((c_path(&mount.source)?, c_path(&mount.target)?)));
        Ok((self.network, mounts.collect::<io::Result<_>>()?))
    }
}

impl AsFd for Process {
    /// Its pidfd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }
}

impl Process {
    /// Starts a program. Blocks for the time of a fork; call it where that is allowed, inside a tokio runtime.
    pub fn spawn(program: Program) -> io::Result<Self> {
        let Program { path, args, env, stdin, log, output, fds, surroundings, jail, oom_score } = program;
        let mut command = Command::new(path);
        command.args(args).env_clear().envs(env);
        command.stdin(stdin.map_or_else(Stdio::null, Stdio::from));
        command.stderr(log.try_clone()?).stdout(output.unwrap_or(log));
        let oom_score = oom_score.to_string();
        let mut aside = vec![-1; fds.len()];
        let jail = jail.map(Jail::prepare).transpose()?;
        let surroundings = surroundings.map(Surroundings::prepare).transpose()?;
        // SAFETY: the closure runs in the forked child of a process with threads: it makes system calls on memory that
        // was allocated before the fork, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                detach()?;
                sacrifice(oom_score.as_bytes())?;
                if let Some((network, mounts)) = &surroundings {
                    surround(network, mounts)?;
                }
                if let Some(jail) = &jail {
                    confine(jail)?;
                }
                inherit(&fds, &mut aside)
            });
        }
        // Dropping the handle neither kills nor waits; both go by the pidfd.
        let child = command.spawn()?;
        Self::open(child.id() as i32)
    }

    /// Takes hold of a running process.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes two integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that the kernel has just made for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        // SAFETY: `fd` is owned by the value that is registered and keeps its descriptor for life.
        let pidfd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
        Ok(Self { pid, start_ticks: start_ticks(pid)?, pidfd })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When it started, in clock ticks since boot: with the pid and the boot id it names the process for good.
    pub fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Resolves when the process has ended. Cancel safe; may be called again.
    pub async fn exited(&self) -> io::Result<()> {
        // The readiness is kept: an ended process stays readable.
        self.pidfd.readable().await?.retain_ready();
        Ok(())
    }

    /// Whether it has ended, by a look of its own: also right after it was opened, and before anybody has reaped it.
    pub fn has_ended(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut waits = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        // An error would be one of a descriptor that we hold.
        poll(&mut waits, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Sends SIGKILL. A process that has ended is no error.
    pub fn kill(&self) -> io::Result<()> {
        // SAFETY: pidfd_send_signal(2) with a live pidfd and no signal information.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match sent {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Removes an ended child from the process table and says how it ended. `None` when it is not our child.
    pub fn reap(&self) -> Option<String> {
        use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
        match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, code)) => Some(format!("exit status {code}")),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(format!("signal {signal}")),
            Ok(_) | Err(_) => None,
        }
    }
}

/// Clock ticks between boot and the start of a process: field 22 of /proc/PID/stat, proc(5).
pub fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rfind(')').map_or("", |at| &stat[at + 1..]);
    after_name
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has no start time"))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Own session (a terminal's Ctrl-C does not reach it), no core dumps, few files.
fn detach() -> io::Result<()> {
    // SAFETY: plain system calls on live values.
    unsafe {
        check(libc::setsid())?;
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
        let files = libc::rlimit { rlim_cur: OPEN_FILES_MAX, rlim_max: OPEN_FILES_MAX };
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files))
    }
}

/// Sets the calling process's place in the order in which the kernel ends processes for their memory.
fn sacrifice(score: &[u8]) -> io::Result<()> {
    // SAFETY: plain system calls on a C string and live bytes.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(file)?;
        let written = libc::write(file, score.as_ptr().cast(), score.len());
        check(written as libc::c_int)?;
        check(libc::close(file))
    }
}

/// Gives descriptors the numbers that they are to have. All are moved out of the way first: one's number may be another's
/// target. `aside` has room for each.
fn inherit(fds: &[(OwnedFd, RawFd)], aside: &mut [RawFd]) -> io::Result<()> {
    for ((fd, _), aside) in fds.iter().zip(&mut *aside) {
        // SAFETY: descriptors are integers; `fd` is alive.
        *aside = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FD_ASIDE) };
        check(*aside)?;
    }
    for ((_, target), aside) in fds.iter().zip(aside) {
        // SAFETY: descriptors are integers; `aside` is alive, `target` is ours to take: what had that number before is
        // needed no more.
        check(unsafe { libc::dup2(*aside, *target) })?;
    }
    Ok(())
}

/// Enters the network namespace and makes the mounts in a mount namespace of the calling process. Runs between fork
/// and exec.
fn surround(network: &OwnedFd, mounts: &[(CString, CString)]) -> io::Result<()> {
    let none = ptr::null();
    // SAFETY: system calls on a descriptor and C strings that were prepared before the fork.
    unsafe {
        check(libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET))?;
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
        for (source, target) in mounts {
            check(libc::mount(source.as_ptr(), target.as_ptr(), none, libc::MS_BIND, none.cast()))?;
        }
    }
    Ok(())
}

const TMPFS: &CStr = c"tmpfs";
const DOT: &CStr = c".";

/// Moves the calling process into its jail. Runs between fork and exec.
fn confine(jail: &Prepared) -> io::Result<()> {
    let root = jail.mount_point.as_ptr();
    // SAFETY: system calls on C strings and descriptors prepared before the fork.
    unsafe {
        check(libc::setns(jail.network.as_raw_fd(), libc::CLONE_NEWNET))?;
        check(libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS))?;
        check(libc::mount(
            ptr::null(),
            c"/".as_ptr(),
            ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            ptr::null(),
        ))?;
        check(libc::mount(
            TMPFS.as_ptr(),
            root,
            TMPFS.as_ptr(),
            libc::MS_NOSUID,
            c"size=64k,nr_inodes=64,mode=0755".as_ptr().cast(),
        ))?;
        check(libc::chdir(root))?;
        check(libc::mkdir(c"dev".as_ptr(), 0o755))?;
        check(libc::mkdir(c"etc".as_ptr(), 0o755))?;
        check(libc::symlink(c"usr/lib".as_ptr(), c"lib".as_ptr()))?;
        check(libc::symlink(c"usr/lib64".as_ptr(), c"lib64".as_ptr()))?;
    }
    for bind in &jail.binds {
        let target = bind.target.as_ptr();
        // SAFETY: as above.
        unsafe {
            if bind.is_folder {
                check(libc::mkdir(target, 0o755))?;
            } else {
                let file = libc::open(target, libc::O_CREAT | libc::O_CLOEXEC, 0o644);
                check(file)?;
                libc::close(file);
            }
            check(libc::mount(bind.source.as_ptr(), target, ptr::null(), libc::MS_BIND, ptr::null()))?;
            if !bind.writable {
                let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID;
                check(libc::mount(ptr::null(), target, ptr::null(), flags, ptr::null()))?;
            }
        }
    }
    // SAFETY: as above. pivot_root(2) allows "." twice: the old root is then on top of the new one, and detached.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, DOT.as_ptr(), DOT.as_ptr()) as libc::c_int)?;
        check(libc::umount2(DOT.as_ptr(), libc::MNT_DETACH))?;
        check(libc::chdir(c"/".as_ptr()))?;
        let flags = libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID;
        check(libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null()))?;
        check(libc::setgroups(0, ptr::null()))?;
        check(libc::setresgid(jail.uid, jail.uid, jail.uid))?;
        check(libc::setresuid(jail.uid, jail.uid, jail.uid))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[tokio::test]
    async fn descriptors_arrive_whatever_numbers_they_had() {
        // Each has the number that another one is to get.
        let files: Vec<File> = (0..4).map(|_| tempfile::tempfile().unwrap()).collect();
        let fds: Vec<OwnedFd> = files.iter().map(|file| file.try_clone().unwrap().into()).collect();
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        assert!(numbers.iter().all(|number| *number < FD_ASIDE), "{numbers:?}");
        let mut targets = numbers.clone();
        targets.rotate_left(1);
        let words: Vec<String> =
            targets.iter().enumerate().map(|(at, target)| format!("echo {at} >&{target}")).collect();
        let program = Program {
            // Other shells know descriptors of one digit only.
            path: PathBuf::from("/bin/bash"),
            args: vec!["-c".into(), words.join(";").into()],
            env: Vec::new(),
            stdin: None,
            log: tempfile::tempfile().unwrap(),
            output: None,
            fds: fds.into_iter().zip(targets).collect(),
            surroundings: None,
            jail: None,
            oom_score: oom_score::VMM,
        };
        let process = Process::spawn(program).unwrap();
        process.exited().await.unwrap();
        assert_eq!(process.reap().as_deref(), Some("exit status 0"));
        for (at, mut file) in files.into_iter().enumerate() {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("{at}\n"));
        }
    }
}
