//! The pager: a process per restored capsule that answers its page faults from the snapshot store.
//!
//! It is started by the agent as `hearth pager …`, one end of a socket pair inherited as standard input, opens what it
//! needs, gives up its privileges, and waits for the preload library's handshake. From then on it serves until the
//! VMM's end of the socket closes. It outlives the agent. When it fails it says why on standard error and exits
//! non-zero; the agent then ends the VMM, whose guest hangs at its next missing page and never reads zeros.

#![expect(unsafe_code, reason = "takes over a received userfaultfd, answers faults at the VMM's addresses")]

use super::{
    CHUNK, PAGE,
    copier::{Copier, Over, handshake},
    fill::{FillError, fill},
    install::{InstallError, install},
    layer::{Buffers, Layer, LayerError},
    stats::{Counter, Writer},
};
use crate::vmm::console::{self, Follower, Ring};
use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
    unistd::{Gid, Uid, setgid, setgroups, setuid},
};
use std::{
    fs::{File, OpenOptions},
    io::{self, IoSliceMut, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    time::Instant,
};
use userfaultfd::{Event, Uffd};

/// Number of the descriptor of a Firecracker's pidfd.
pub const VMM_FD: RawFd = 3;

const MAGIC: [u8; 8] = *b"HRTHPAG1";
/// magic, address, length, page size: see agent/preload.
const HANDSHAKE_BYTES: usize = 32;
/// Zero pages mapped ahead of a fault on one: guests touch fresh memory in runs, and mapping the zero page costs
/// 20 ns a page against some microseconds for an event.
pub(super) const ZERO_AHEAD: u64 = 256 << 10;

/// Arguments of `hearth pager`.
#[derive(Debug, Clone, clap::Args)]
pub struct PagerArgs {
    /// The snapshot's memory layer.
    #[arg(long)]
    pub layer: PathBuf,
    /// The layer of the capsule's own pages over it, for a capsule that is restored from a generation of its own.
    #[arg(long)]
    pub difference: Option<PathBuf>,
    /// The memory image to fill.
    #[arg(long)]
    pub image: PathBuf,
    /// Where to count (see `memory::stats`).
    #[arg(long)]
    pub stats: PathBuf,
    /// Where to keep the VMM's console, which comes by the pipe at descriptor 4 (see `vmm::console`).
    #[arg(long)]
    pub console: PathBuf,
    /// User and group id to run as, after the files are open.
    #[arg(long)]
    pub uid: u32,
    /// Process id of a Firecracker. Then standard input is the listening socket that it will connect to, and
    /// descriptor 3 its pidfd.
    #[arg(long)]
    pub firecracker: Option<i32>,
}

/// Why a pager ended.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// A file could not be opened.
    #[error("{path}: {source}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The handshake is not what the preload library sends.
    #[error("handshake: {0}")]
    Handshake(String),
    /// The snapshot could not be read.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The capsule's own pages could not be put in place.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The image could not be filled.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// An ioctl on the userfaultfd failed.
    #[error("{what}: {source}")]
    Uffd {
        /// Which.
        what: &'static str,
        /// Why.
        source: userfaultfd::Error,
    },
}

pub(super) fn system(what: &'static str) -> impl Fn(Errno) -> PagerError {
    move |errno| PagerError::System { what, source: errno.into() }
}

/// The guest memory that is served: where it is in the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    address: u64,
    length: u64,
}

impl Region {
    /// (pure) The region that the preload library's message names, which has to be `ram_bytes` of memory.
    pub fn parse(bytes: &[u8], ram_bytes: u64) -> Result<Self, PagerError> {
        let bad = |text: &str| PagerError::Handshake(text.to_owned());
        if bytes.len() != HANDSHAKE_BYTES || bytes[..8] != MAGIC {
            return Err(bad("not the preload library's message"));
        }
        let number = |at: usize| {
            bytes[at..at + 8].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let region = Self { address: number(8), length: number(16) };
        if number(24) != PAGE as u64 || !region.address.is_multiple_of(PAGE as u64) {
            return Err(bad("page size or alignment is not ours"));
        }
        if region.length != ram_bytes || region.address.checked_add(region.length).is_none() {
            return Err(bad("the region's size is not the snapshot's"));
        }
        Ok(region)
    }
}

/// Runs a pager on standard input until its VMM is gone.
pub fn run(args: &PagerArgs) -> Result<(), PagerError> {
    let open = |path: &PathBuf, write: bool| {
        OpenOptions::new()
            .read(true)
            .write(write)
            .open(path)
            .map_err(|source| PagerError::Open { path: path.clone(), source })
    };
    let layer = Layer::open(open(&args.layer, false)?)?;
    let image = open(&args.image, true)?;
    let size =
        image.metadata().map_err(|source| PagerError::Open { path: args.image.clone(), source })?.len();
    if size != layer.ram_bytes() {
        return Err(PagerError::Handshake(format!(
            "the image has {size} bytes, the layer {}",
            layer.ram_bytes()
        )));
    }
    let difference =
        args.difference.as_ref().map(|path| Ok::<_, PagerError>(Layer::open(open(path, false)?)?));
    let difference = difference.transpose()?;
    if difference.as_ref().is_some_and(|layer| layer.ram_bytes() != size) {
        return Err(PagerError::Handshake("the difference is not of this memory's size".to_owned()));
    }
    let stats = Writer::create(&args.stats)
        .map_err(|source| PagerError::Open { path: args.stats.clone(), source })?;
    let ring = Ring::create(&args.console)
        .map_err(|source| PagerError::Open { path: args.console.clone(), source })?;
    let buffers = Buffers::new().map_err(|source| PagerError::System { what: "decompressor", source })?;
    drop_privileges(args.uid)?;
    // SAFETY: this descriptor is the pipe that the agent gave us; it was there before this process opened a file.
    let pipe = unsafe { OwnedFd::from_raw_fd(console::PAGER_FD) };
    let console = Follower::start(pipe, ring)
        .map_err(|source| PagerError::System { what: "the console's thread", source })?;
    let layers = (layer, difference);
    match args.firecracker {
        Some(pid) => run_copier(pid, layers, image, stats, buffers)?,
        None => run_filler(layers, image, stats, buffers)?,
    }
    console.finish();
    Ok(())
}

/// Serves a QEMU, which maps the image.
fn run_filler(
    (layer, difference): (Layer, Option<Layer>),
    image: File,
    stats: Writer,
    mut buffers: Buffers,
) -> Result<(), PagerError> {
    // SAFETY: standard input is the socket that the agent gave us; nothing else in this process uses it.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(0) });
    let Some((uffd, region)) = handshake(&socket, layer.ram_bytes())? else { return Ok(()) };
    if let Some(difference) = &difference {
        // Before the answer: the VMM waits for it, so nothing has touched its memory yet.
        install(&uffd, region.address, difference, &mut buffers)?;
    }
    stats.add(Counter::Serving, 1);
    let mut pager = Pager { layer, image, stats, buffers, uffd, region };
    (&socket).write_all(&[1]).map_err(|source| PagerError::System { what: "answer to the VMM", source })?;
    pager.serve(&socket)
}

/// Serves a Firecracker, whose memory is its own.
fn run_copier(
    pid: i32,
    (layer, difference): (Layer, Option<Layer>),
    image: File,
    stats: Writer,
    buffers: Buffers,
) -> Result<(), PagerError> {
    // SAFETY: standard input is the listening socket that the agent gave us; nothing else in this process uses it.
    let listener = unsafe { UnixListener::from_raw_fd(0) };
    // SAFETY: this descriptor is the pidfd that the agent gave us; it was there before this process opened a file.
    let end = unsafe { OwnedFd::from_raw_fd(VMM_FD) };
    let Some((uffd, regions, stream)) = handshake::accept(&listener, pid, end.as_fd(), layer.ram_bytes())?
    else {
        return Ok(());
    };
    stats.add(Counter::Serving, 1);
    let over = difference.map(Over::new).transpose()?;
    Copier::new((layer, over), image, stats, buffers, (uffd, regions)).serve(&[stream.as_fd(), end.as_fd()])
}

fn drop_privileges(uid: u32) -> Result<(), PagerError> {
    setgroups(&[]).map_err(system("setgroups"))?;
    setgid(Gid::from_raw(uid)).map_err(system("setgid"))?;
    setuid(Uid::from_raw(uid)).map_err(system("setuid"))
}

/// Receives and checks the handshake. `None` when the VMM ended before it sent one.
fn handshake(socket: &UnixStream, ram_bytes: u64) -> Result<Option<(Uffd, Region)>, PagerError> {
    let mut bytes = [0; HANDSHAKE_BYTES + 1];
    let (count, fds) = receive(socket, &mut bytes)?;
    if count == 0 {
        return Ok(None);
    }
    let region = Region::parse(&bytes[..count], ram_bytes)?;
    Ok(Some((userfaultfd(fds)?, region)))
}

/// Receives a message's bytes, and the descriptors that came with it.
pub(super) fn receive(socket: &UnixStream, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), PagerError> {
    let mut control = cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(bytes)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)
            .map_err(system("recvmsg"))?;
    let mut fds = Vec::new();
    for item in message.cmsgs().map_err(system("control message"))? {
        if let ControlMessageOwned::ScmRights(received) = item {
            // SAFETY: the kernel has just installed these descriptors for us; each is owned once, here.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

/// The one descriptor of a handshake, which has to be a userfaultfd.
pub(super) fn userfaultfd(fds: Vec<OwnedFd>) -> Result<Uffd, PagerError> {
    let bad = |text: &str| PagerError::Handshake(text.to_owned());
    let mut fds = fds.into_iter();
    let (Some(fd), None) = (fds.next(), fds.next()) else {
        return Err(bad("exactly one descriptor is expected"));
    };
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_err(|source| PagerError::System { what: "descriptor's name", source })?;
    if name.as_os_str() != "anon_inode:[userfaultfd]" {
        return Err(bad("the descriptor is not a userfaultfd"));
    }
    // SAFETY: `fd` is an owned userfaultfd; ownership moves into the wrapper.
    Ok(unsafe { Uffd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fd)) })
}

struct Pager {
    layer: Layer,
    image: File,
    stats: Writer,
    buffers: Buffers,
    uffd: Uffd,
    region: Region,
}

impl Pager {
    /// Serves events until the other end of `socket` is gone.
    fn serve(&mut self, socket: &UnixStream) -> Result<(), PagerError> {
        let uffd = self.uffd.as_raw_fd();
        loop {
            // SAFETY: the descriptor lives in `self.uffd`, which outlives this borrow.
            let uffd = unsafe { BorrowedFd::borrow_raw(uffd) };
            let mut waits =
                [PollFd::new(uffd, PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waits, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(system("poll")(error)),
            }
            let gone = waits[1].any().unwrap_or(false);
            if waits[0].any().unwrap_or(false) {
                self.drain()?;
            }
            if gone {
                return Ok(());
            }
        }
    }

    fn drain(&mut self) -> Result<(), PagerError> {
        loop {
            let event = match self.uffd.read_event() {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(userfaultfd::Error::SystemError(errno)) if is_gone(errno as i32) => return Ok(()),
                Err(source) => return Err(PagerError::Uffd { what: "event", source }),
            };
            // Others (remove, remap, fork) were not asked for.
            if let Event::Pagefault { addr, .. } = event {
                let start = Instant::now();
                self.fault(addr as u64)?;
                self.stats.served(start.elapsed().as_micros() as u64);
            }
        }
    }

    fn fault(&mut self, address: u64) -> Result<(), PagerError> {
        let offset = address
            .checked_sub(self.region.address)
            .filter(|offset| *offset < self.region.length)
            .ok_or_else(|| {
            PagerError::Handshake(format!("a fault at {address:#x} outside the region"))
        })?;
        let chunk = (offset / CHUNK as u64) as usize;
        let page = (offset % CHUNK as u64) as usize / PAGE;
        let entry = self
            .layer
            .entry(chunk)
            .ok_or_else(|| LayerError::Format(format!("there is no chunk {chunk}")))?;
        if entry.zero >> page & 1 == 1 {
            return self.zero(offset);
        }
        match fill(&self.image, &self.layer, chunk, &mut self.buffers) {
            Ok((_, pages)) => {
                self.stats.add(Counter::FilledPages, pages);
                self.wake(self.region.address + (chunk * CHUNK) as u64, CHUNK as u64)
            }
            Err(FillError::Full) => self.copy(chunk, page),
            Err(error) => Err(error.into()),
        }
    }

    /// Answers a fault on a zero page, and maps the zero pages behind it.
    fn zero(&self, offset: u64) -> Result<(), PagerError> {
        let offset = offset - offset % PAGE as u64;
        let mut end = offset + PAGE as u64;
        let limit = (offset + ZERO_AHEAD).min(self.region.length);
        while end < limit && self.is_zero(end) {
            end += PAGE as u64;
        }
        for length in [end - offset, PAGE as u64] {
            let start = self.region.address + offset;
            // SAFETY: the range is inside the registered region of the VMM; nothing of this process is touched.
            match unsafe { self.uffd.zeropage(start as *mut _, length as usize, true) } {
                Ok(_) => {
                    self.stats.add(Counter::ZeroPages, length / PAGE as u64);
                    return Ok(());
                }
                // A page of the run is mapped already: then only the one that was asked for.
                Err(userfaultfd::Error::ZeropageFailed(errno)) if errno as i32 == libc::EEXIST => {}
                Err(userfaultfd::Error::ZeropageFailed(errno)) if is_gone(errno as i32) => return Ok(()),
                Err(userfaultfd::Error::ZeropageFailed(errno)) if errno as i32 == libc::EAGAIN => {}
                Err(source) => return Err(PagerError::Uffd { what: "UFFDIO_ZEROPAGE", source }),
            }
        }
        self.wake(self.region.address + offset, PAGE as u64)
    }

    fn is_zero(&self, offset: u64) -> bool {
        let page = (offset % CHUNK as u64) as usize / PAGE;
        self.layer.entry((offset / CHUNK as u64) as usize).is_some_and(|entry| entry.zero >> page & 1 == 1)
    }

    /// Answers one page by a private copy.
    fn copy(&mut self, chunk: usize, page: usize) -> Result<(), PagerError> {
        self.layer.read(chunk, &mut self.buffers)?;
        let source = &self.buffers.chunk[page * PAGE..][..PAGE];
        let to = self.region.address + (chunk * CHUNK + page * PAGE) as u64;
        // SAFETY: `source` is a live page of ours, `to` a page inside the registered region of the VMM.
        match unsafe { self.uffd.copy(source.as_ptr().cast(), to as *mut _, PAGE, true) } {
            Ok(_) => {
                self.stats.add(Counter::CopiedPages, 1);
                Ok(())
            }
            Err(userfaultfd::Error::CopyFailed(errno)) if errno as i32 == libc::EEXIST => {
                self.wake(to, PAGE as u64)
            }
            Err(userfaultfd::Error::CopyFailed(errno)) if is_gone(errno as i32) => Ok(()),
            Err(source) => Err(PagerError::Uffd { what: "UFFDIO_COPY", source }),
        }
    }

    fn wake(&self, address: u64, length: u64) -> Result<(), PagerError> {
        match self.uffd.wake(address as *mut _, length as usize) {
            Ok(()) => Ok(()),
            Err(userfaultfd::Error::SystemError(errno)) if is_gone(errno as i32) => Ok(()),
            Err(source) => Err(PagerError::Uffd { what: "UFFDIO_WAKE", source }),
        }
    }
}

/// The VMM's memory is gone: it is exiting.
pub(super) fn is_gone(errno: i32) -> bool {
    errno == libc::ESRCH
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(address: u64, length: u64, page: u64) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [address, length, page] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_lying_handshake_is_refused_by_what_is_wrong_with_it() {
        const RAM: u64 = 64 << 20;
        assert_eq!(
            Region::parse(&message(1 << 30, RAM, 4096), RAM).unwrap(),
            Region { address: 1 << 30, length: RAM }
        );
        let mut longer = message(1 << 30, RAM, 4096);
        longer.push(0);
        for (bytes, reason) in [
            (message(1 << 30, RAM, 4096)[..31].to_vec(), "message"),
            (longer, "message"),
            (vec![7; HANDSHAKE_BYTES], "message"),
            (message(1 << 30, RAM, 2 << 20), "page size"),
            (message((1 << 30) + 1, RAM, 4096), "alignment"),
            (message(1 << 30, RAM / 2, 4096), "size"),
            (message(u64::MAX - 4095, RAM, 4096), "size"),
        ] {
            let error = Region::parse(&bytes, RAM).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} has no {reason}");
        }
    }
}
