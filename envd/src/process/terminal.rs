//! Pseudoterminals: our end of one, and the process's.

#![expect(unsafe_code, reason = "terminals are opened and sized by ioctl only")]

use crate::user::{self, User};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::{grantpt, posix_openpt, unlockpt},
    sys::stat::{Mode, fchmod},
    unistd::{Gid, Uid, fchown},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};
use tokio::io::{Interest, unix::AsyncFd};

nix::ioctl_write_ptr_bad!(
    /// TIOCSWINSZ: the new size.
    set_size,
    libc::TIOCSWINSZ,
    libc::winsize
);

/// Columns and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters in a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

/// Our end of a terminal. What the process writes is read from it as it is, what it reads is written to it.
#[derive(Debug)]
pub struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// Opens one of this size, and the end for a process of `user`, who owns it.
    pub fn open(size: Size, user: &User) -> io::Result<(Self, OwnedFd)> {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        // Opened by the master, not by its name: the mount of /dev/pts that user code sees does not matter.
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: TIOCGPTPEER takes its flags by value and touches no memory of ours.
        let peer = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
        if peer < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call returned a new descriptor that nobody else owns.
        let peer = unsafe { OwnedFd::from_raw_fd(peer) };
        give(&peer, user)?;
        // SAFETY: `PtyMaster` gives its descriptor away, so it has one owner.
        let master = unsafe { OwnedFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(master)) };
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, and it is moved in here for good.
        let terminal = Self { master: unsafe { AsyncFd::register(master) }? };
        terminal.resize(size)?;
        Ok((terminal, peer))
    }

    /// Gives it another size; the foreground processes get SIGWINCH.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and `size` lives through the call, which only reads it.
        unsafe { set_size(self.master.as_raw_fd(), &raw const size) }?;
        Ok(())
    }

    /// Waits for output and reads it; 0 when no process has the terminal any more. Cancel safe.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.master.async_io(Interest::READABLE, |master| Ok(nix::unistd::read(master, buffer)?));
        gone_is_end(read.await)
    }

    /// Reads what is there; `WouldBlock` when there is nothing, 0 when no process has it any more.
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        gone_is_end(nix::unistd::read(self.master.get_ref().as_fd(), buffer).map_err(Into::into))
    }

    /// Types bytes; returns how many were taken. Cancel safe.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.master.async_io(Interest::WRITABLE, |master| Ok(nix::unistd::write(master, bytes)?)).await
    }
}

/// The kernel says EIO when the last process has closed its end, after all that was written has been read.
fn gone_is_end(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
        read => read,
    }
}

/// As login(1) does: the user's own, and writable for programs of the group `tty` (write, wall).
fn give(peer: &OwnedFd, user: &User) -> io::Result<()> {
    let tty = user::group_id("tty").map_err(io::Error::other)?;
    let mode = if tty.is_some() { Mode::from_bits_truncate(0o620) } else { Mode::from_bits_truncate(0o600) };
    fchown(peer, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(tty.unwrap_or(user.gid))))?;
    fchmod(peer, mode)?;
    Ok(())
}
