//! Preloaded into QEMU (`LD_PRELOAD`): guest RAM becomes a private mapping of the memory image, registered with
//! userfaultfd.
//!
//! QEMU is told `share=on` so that its saved state leaves RAM out (`x-ignore-shared`), opens the image for writing and
//! maps it shared. This library turns that one open into a read-only one and that one mapping into a private one, makes
//! a userfaultfd from the inherited `/dev/userfaultfd` descriptor, registers the mapping for missing pages, and hands
//! the userfaultfd to the pager over an inherited socket. QEMU keeps its copy of the userfaultfd and of the socket: a
//! dead pager then means a hang that the agent turns into a clean failure, never memory that silently reads as zero,
//! and the pager sees the end of QEMU as the end of the socket.
//!
//! Environment (set by the agent, see `agent/src/vmm/qemu.rs`): `HEARTH_IMAGE` the image's path, `HEARTH_UFFD_FD` the
//! descriptor of `/dev/userfaultfd`, `HEARTH_PAGER_FD` the socket. The message is [`Handshake`].
//!
//! Whatever goes wrong ends the process with a line on standard error: half a mapping must never run.

#![allow(unsafe_code, reason = "the whole library is a hook below libc's interface")]

use libc::{c_char, c_int, c_long, c_void, mode_t, off64_t, size_t};
use std::{
    ffi::CStr,
    io, mem, ptr,
    sync::atomic::{AtomicI32, Ordering},
};

/// First bytes of a handshake.
const MAGIC: [u8; 8] = *b"HRTHPAG1";

/// `_IO(0xAA, 0x00)` on `/dev/userfaultfd`: make a userfaultfd; the argument is its flags
/// (linux/userfaultfd.h, Linux 6.1).
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;
/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`.
const UFFDIO_API: u64 = 0xc018_aa3f;
/// `_IOWR(0xAA, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
/// The only API version there is.
const UFFD_API: u64 = 0xaa;
/// Events for pages that are not there.
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

/// What the pager is told about the mapping. Native byte order: both ends are on this host.
#[repr(C)]
struct Handshake {
    magic: [u8; 8],
    address: u64,
    length: u64,
    page_size: u64,
}

/// `struct uffdio_api`.
#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// The image's descriptor once QEMU has opened it; -1 before, -2 once it is mapped.
static IMAGE: AtomicI32 = AtomicI32::new(-1);
/// Value of [`IMAGE`] after the one mapping.
const MAPPED: i32 = -2;

fn die(what: &str) -> ! {
    eprintln!("hearth-preload: {what}: {}", io::Error::last_os_error());
    // SAFETY: abort(3) has no preconditions.
    unsafe { libc::abort() }
}

fn env_fd(name: &CStr) -> c_int {
    // SAFETY: `name` is a C string; the result is null or a C string that nobody changes (QEMU sets no environment
    // while it parses its options).
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        die(&format!("{} is not set", name.to_string_lossy()));
    }
    // SAFETY: not null, hence a C string.
    let text = unsafe { CStr::from_ptr(value) };
    match text.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(fd) => fd,
        None => die(&format!("{} is not a number", name.to_string_lossy())),
    }
}

fn is_image(path: *const c_char) -> bool {
    // SAFETY: a C string literal.
    let image = unsafe { libc::getenv(c"HEARTH_IMAGE".as_ptr()) };
    // SAFETY: both are C strings when not null: ours by the agent's promise, `path` by open(2)'s.
    !image.is_null() && !path.is_null() && unsafe { libc::strcmp(image, path) } == 0
}

fn open_at(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let ours = is_image(path);
    let flags = if ours { libc::O_RDONLY | libc::O_CLOEXEC } else { flags };
    // SAFETY: the caller's own arguments of open(2), or less access than it asked for.
    let fd = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) };
    let fd = c_int::try_from(fd).unwrap_or(-1);
    if ours && fd >= 0 {
        IMAGE.store(fd, Ordering::SeqCst);
    }
    fd
}

/// Replaces open(3).
///
/// # Safety
/// As open(3): `path` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    open_at(path, flags, mode)
}

/// Replaces open64(3).
///
/// # Safety
/// As open(3): `path` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    open_at(path, flags, mode)
}

/// Replaces glibc's checked open64, which programs built with `_FORTIFY_SOURCE` call.
///
/// # Safety
/// As open(3): `path` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    open_at(path, flags, 0)
}

fn map(
    address: *mut c_void,
    length: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: c_long,
) -> *mut c_void {
    let ours = fd >= 0 && fd == IMAGE.load(Ordering::SeqCst);
    let flags = if ours { (flags & !libc::MAP_SHARED) | libc::MAP_PRIVATE } else { flags };
    // SAFETY: the caller's own arguments of mmap(2); for the image only the sharing differs.
    let mapped = unsafe { libc::syscall(libc::SYS_mmap, address, length, prot, flags, fd, offset) };
    let mapped = mapped as *mut c_void;
    if ours && mapped != libc::MAP_FAILED {
        hand_over(mapped as u64, length as u64);
        IMAGE.store(MAPPED, Ordering::SeqCst);
    }
    mapped
}

/// Replaces mmap(3).
///
/// # Safety
/// As mmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: c_long,
) -> *mut c_void {
    map(address, length, prot, flags, fd, offset)
}

/// Replaces mmap64(3), which QEMU calls.
///
/// # Safety
/// As mmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    length: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off64_t,
) -> *mut c_void {
    map(address, length, prot, flags, fd, offset)
}

/// Registers the mapping and gives the userfaultfd to the pager; returns once the pager answered that it serves.
fn hand_over(address: u64, length: u64) {
    let device = env_fd(c"HEARTH_UFFD_FD");
    let socket = env_fd(c"HEARTH_PAGER_FD");
    // SAFETY: an ioctl without memory arguments.
    let uffd = unsafe { libc::ioctl(device, USERFAULTFD_IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if uffd < 0 {
        die("no userfaultfd from /dev/userfaultfd");
    }
    let mut api = UffdioApi { api: UFFD_API, features: 0, ioctls: 0 };
    // SAFETY: `api` is a live `struct uffdio_api`.
    if unsafe { libc::ioctl(uffd, UFFDIO_API, &raw mut api) } < 0 {
        die("UFFDIO_API");
    }
    let mut register =
        UffdioRegister { start: address, len: length, mode: UFFDIO_REGISTER_MODE_MISSING, ioctls: 0 };
    // SAFETY: `register` is a live `struct uffdio_register`; the range is the mapping made just now.
    if unsafe { libc::ioctl(uffd, UFFDIO_REGISTER, &raw mut register) } < 0 {
        die("UFFDIO_REGISTER of the memory image");
    }
    // The device is not needed again; less for a hostile guest that breaks out to play with.
    // SAFETY: a descriptor that was given to us for this.
    unsafe { libc::close(device) };
    send(socket, uffd, &Handshake { magic: MAGIC, address, length, page_size: 4096 });
    let mut answer = 0u8;
    // SAFETY: one byte into a live byte.
    if unsafe { libc::read(socket, (&raw mut answer).cast(), 1) } != 1 || answer != 1 {
        die("the pager refused the handshake");
    }
    // `uffd` and `socket` stay open on purpose, see the head of this file.
}

/// Sends the handshake with `fd` attached (SCM_RIGHTS, unix(7)).
fn send(socket: c_int, fd: c_int, handshake: &Handshake) {
    const SPACE: usize = 64;
    #[repr(align(8))]
    struct Control([u8; SPACE]);
    let mut control = Control([0; SPACE]);
    let mut part = libc::iovec {
        iov_base: ptr::from_ref(handshake).cast_mut().cast(),
        iov_len: mem::size_of::<Handshake>(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: arithmetic only.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(mem::size_of::<c_int>() as u32) } as usize;
    // SAFETY: `message` names a control buffer that is large enough for one header and one descriptor (24 of 64 bytes)
    // and aligned for it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(mem::size_of::<c_int>() as u32) as usize;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast::<c_int>(), fd);
    }
    // SAFETY: `message` and all it points to live until the call returns.
    let sent = unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) };
    if usize::try_from(sent) != Ok(mem::size_of::<Handshake>()) {
        die("sending the userfaultfd to the pager");
    }
}
