//! Gives the kernel's random number generator the host's fresh bytes: clones of one snapshot have the same state.

#![expect(unsafe_code, reason = "random(4) takes entropy by ioctl only")]

use std::{fs::File, io, os::fd::AsRawFd};

/// Fewest bytes that count as fresh: the size of the generator's key.
pub const BYTES_MIN: usize = 32;
/// Most bytes taken at once.
pub const BYTES_MAX: usize = 512;

/// `struct rand_pool_info` of <linux/random.h>, with room for the most.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    size_bytes: libc::c_int,
    bytes: [u8; BYTES_MAX],
}

nix::ioctl_write_ptr_bad!(
    /// RNDADDENTROPY.
    add_entropy,
     nix::request_code_write!(b'R', 0x03, 8),
    PoolInfo
);
nix::ioctl_none_bad!(
    /// RNDRESEEDCRNG.
    reseed,
    nix::request_code_none!(b'R', 0x07)
);

/// Mixes `bytes` in, credits them in full and makes the generator use them at once.
pub fn add(bytes: &[u8]) -> io::Result<()> {
    if bytes.len() < BYTES_MIN || BYTES_MAX < bytes.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let size = libc::c_int::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut info = PoolInfo { entropy_bits: size * 8, size_bytes: size, bytes: [0; BYTES_MAX] };
    info.bytes[..bytes.len()].copy_from_slice(bytes);
    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: RNDADDENTROPY reads a rand_pool_info with `size_bytes` bytes behind it; `info` has BYTES_MAX of them,
    // which is checked above, and lives until the call returns.
    unsafe { add_entropy(device.as_raw_fd(), &raw const info) }?;
    // SAFETY: RNDRESEEDCRNG takes no argument, and the descriptor is open.
    unsafe { reseed(device.as_raw_fd()) }?;
    Ok(())
}
