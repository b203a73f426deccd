//! Guest memory: how it is kept in the snapshot store and how a restored capsule gets its pages.
//!
//! ```text
//!  snapshot store             tmpfs of the agent            QEMU (capsule's uid)
//!  memory.layer  ──pager──▶   image (sparse, 0444)  ◀─────  MAP_PRIVATE, read-only open, userfaultfd MISSING
//!  (zstd frames)   fills      shared by all capsules        a page that is there: the kernel maps it, no event
//!                             of one snapshot               a hole: event to the capsule's own pager
//! ```
//!
//! Rules that keep memory from silently turning to zeros: the tmpfs is mounted with `huge=never`; an image is never
//! punched or truncated while mapped (eviction is unlink); a hole is filled only under a lock of its chunk; a page
//! that the tmpfs has no room for is answered by a private copy; the VMM holds a second reference to its userfaultfd.

pub mod copier;
pub mod fill;
pub mod image;
pub mod layer;
pub mod pager;
pub mod stats;

/// Bytes of a page. Hearth runs on x86-64 with 4 KiB pages; a manifest of another size is refused.
pub const PAGE: usize = 4096;

/// Bytes of a chunk: the unit of compression, of a fill and of its lock. 64 KiB was the best of those measured
/// for lazy fills (larger chunks read more than is touched, smaller ones fault more often).
pub const CHUNK: usize = 64 << 10;

/// Pages of a chunk.
pub const CHUNK_PAGES: usize = CHUNK / PAGE;
