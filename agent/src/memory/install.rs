//! Puts a capsule's own pages over the shared image: before the device state is loaded, nothing has touched the
//! mapping yet, so every page is still missing and can be answered in advance.
//!
//! UFFDIO_COPY and UFFDIO_ZEROPAGE on a private mapping make pages of the VMM's own also where the image has a page
//! (ioctl_userfaultfd(2); the page table entry counts, not the file). The guest then never sees the parent's page.

#![expect(unsafe_code, reason = "answers faults in advance at the VMM's addresses")]

use super::{
    CHUNK, PAGE,
    layer::{Buffers, Layer, LayerError, runs},
};
use userfaultfd::{Error, Uffd};

/// Attempts at a range that the kernel answers only in part, while the VMM changes its mappings.
const ATTEMPTS: usize = 1000;

/// Why a page could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The layer could not be read.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The kernel refused.
    #[error("{what}: {source}")]
    Uffd {
        /// Which call.
        what: &'static str,
        /// Why.
        source: Error,
    },
    /// The VMM keeps changing its mappings.
    #[error("a range of guest memory cannot be filled")]
    Unsettled,
}

/// Puts every page that the layer has into the VMM's memory, which begins at `address`, is registered with `uffd` for
/// all of the layer's size, and has no page yet.
pub fn install(uffd: &Uffd, address: u64, layer: &Layer, buffers: &mut Buffers) -> Result<(), InstallError> {
    for chunk in 0..layer.chunks() {
        let Some(entry) = layer.entry(chunk) else { continue };
        let at = address + (chunk * CHUNK) as u64;
        if entry.stored != 0 {
            layer.read(chunk, buffers)?;
        }
        for (bit, pages) in runs(entry.stored) {
            copy(uffd, &buffers.chunk[bit * PAGE..][..pages * PAGE], at + (bit * PAGE) as u64)?;
        }
        for (bit, pages) in runs(entry.zero) {
            zero(uffd, at + (bit * PAGE) as u64, pages * PAGE)?;
        }
    }
    Ok(())
}

fn copy(uffd: &Uffd, pages: &[u8], to: u64) -> Result<(), InstallError> {
    let mut done = 0;
    for _ in 0..ATTEMPTS {
        let rest = &pages[done..];
        let at = to + done as u64;
        // SAFETY: `rest` is live memory of ours; the target is inside the registered region of the VMM, which is
        // another process: nothing of ours is written.
        match unsafe { uffd.copy(rest.as_ptr().cast(), at as *mut _, rest.len(), false) } {
            Ok(_) => return Ok(()),
            // The number is negative when nothing was copied.
            Err(Error::PartiallyCopied(bytes)) if bytes < rest.len() => done += bytes,
            Err(Error::PartiallyCopied(_)) => {}
            Err(source) => return Err(InstallError::Uffd { what: "UFFDIO_COPY in advance", source }),
        }
    }
    Err(InstallError::Unsettled)
}

fn zero(uffd: &Uffd, at: u64, bytes: usize) -> Result<(), InstallError> {
    for _ in 0..ATTEMPTS {
        // SAFETY: the range is inside the registered region of the VMM; nothing of this process is touched.
        match unsafe { uffd.zeropage(at as *mut _, bytes, false) } {
            Ok(_) => return Ok(()),
            Err(Error::ZeropageFailed(errno)) if errno as i32 == libc::EAGAIN => {}
            Err(source) => return Err(InstallError::Uffd { what: "UFFDIO_ZEROPAGE in advance", source }),
        }
    }
    Err(InstallError::Unsettled)
}
