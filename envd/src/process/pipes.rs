//! What the owners of processes do with output pipes and trees, in the foreground and in the background.

use super::groups::Group;
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{io, os::fd::AsFd};
use tokio::{net::unix::pipe, process::Child};

/// Bytes read and sent at once: half of a pipe's default size.
pub const CHUNK_BYTES: usize = 32 * 1024;

/// What a pipe can hold.
pub fn size(pipe: &pipe::Receiver) -> usize {
    fcntl(pipe, FcntlArg::F_GETPIPE_SZ).ok().and_then(|size| usize::try_from(size).ok()).unwrap_or(0)
}

/// Goes on reading for background processes that hold the pipe, so that their next write does not end them.
pub fn discard(pipe: pipe::Receiver, mut buffer: Box<[u8]>) {
    if matches!(nix::unistd::read(pipe.as_fd(), &mut buffer), Ok(0)) {
        return;
    }
    // Ends with the last process that holds the pipe; their number is bounded by the guest's pids.max.
    tokio::spawn(async move {
        while pipe.readable().await.is_ok() {
            match pipe.try_read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    });
}

/// Kills the whole tree, sessions of their own included.
pub fn kill(group: &Group, child: &Child) {
    if group.kill().is_ok() {
        return;
    }
    // Without cgroup.kill (before Linux 5.14) the process group is what there is. Our child is its leader and not
    // yet waited for, so the number is still its own.
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok())
        && let Err(error) = killpg(Pid::from_raw(pid), Signal::SIGKILL)
    {
        tracing::warn!(pid, %error, "not killed");
    }
}
