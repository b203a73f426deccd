//! Swap on this host, for tests of memory that is not where it was.

#![expect(unsafe_code, reason = "swapon and process_madvise have no wrapper")]

use anyhow::Context;
use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io::{self, IoSlice},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

/// A swap file that is in use until this is dropped.
#[derive(Debug)]
pub struct Swap {
    path: PathBuf,
}

impl Swap {
    /// Makes a swap file of `bytes` and turns it on. `Err`: the host has no swap for us, or the folder is on a file
    /// system that cannot have any.
    pub fn on(path: &Path, bytes: u64) -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let swap = Self { path: path.to_owned() };
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, bytes as i64)?;
        let made = Command::new("mkswap").arg(path).output().context("mkswap")?;
        anyhow::ensure!(made.status.success(), "mkswap: {}", String::from_utf8_lossy(&made.stderr));
        // SAFETY: swapon(2) reads a C string that lives for the call.
        check(unsafe { libc::swapon(swap.name()?.as_ptr(), 0) }).context("swapon")?;
        Ok(swap)
    }

    fn name(&self) -> io::Result<CString> {
        Ok(CString::new(self.path.as_os_str().as_bytes())?)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Ok(name) = self.name() {
            // SAFETY: as above. It fails when it was not turned on.
            unsafe { libc::swapoff(name.as_ptr()) };
        }
        // The test's folder goes with it anyway.
        let _ = fs::remove_file(&self.path);
    }
}

/// Asks the kernel to swap a process's writable private memory out (process_madvise(2), MADV_PAGEOUT). Returns how many
/// KiB of it are in swap afterwards: the kernel may keep what is in use.
pub fn page_out(pid: i32) -> anyhow::Result<u64> {
    // SAFETY: pidfd_open(2) takes two integers and returns a descriptor of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    check(fd as libc::c_int).context("pidfd_open")?;
    // SAFETY: a descriptor that the kernel has just made for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some("rw-p")) = (fields.next(), fields.next()) else { continue };
        let (from, to) = range.split_once('-').context("a range in maps")?;
        let (from, to) = (usize::from_str_radix(from, 16)?, usize::from_str_radix(to, 16)?);
        // SAFETY: the slice is only a pair of numbers to this call: it names memory of the other process, and nothing
        // reads through it here.
        let part = IoSlice::new(unsafe { std::slice::from_raw_parts(from as *const u8, to - from) });
        // SAFETY: process_madvise(2) with MADV_PAGEOUT changes no contents of the other process.
        let advised = unsafe {
            use std::os::fd::AsRawFd;
            libc::syscall(
                libc::SYS_process_madvise,
                fd.as_raw_fd(),
                &raw const part,
                1,
                libc::MADV_PAGEOUT,
                0,
            )
        };
        // Special mappings refuse; what counts is the sum below.
        let _ = advised;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    hearth_agent::usage::kib_of(&status, "VmSwap").context("VmSwap")
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
