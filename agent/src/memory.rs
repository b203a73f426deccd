//! Guest memory: how it is kept in the snapshot store and how a restored capsule gets its pages.
//!
//! ```text
//!  snapshot store             tmpfs of the agent            QEMU (capsule's uid)
//!  memory.layer  ──pager──▶   image (sparse, 0444)  ◀─────  MAP_PRIVATE, read-only open, userfaultfd MISSING
//!  (zstd frames)   fills      shared by all capsules        a page that is there: the kernel maps it, no event
//!                             of one snapshot               a hole: event to the capsule's own pager
//! ```
//!
//! A capsule that is paused, forked or snapshotted adds a layer of its own: only the pages that differ from its
//! template's ([`written`], [`difference`]). When it is restored, its pager puts them over the image before the device
//! state is loaded, as private pages of this capsule; all others stay shared.
//!
//! Rules that keep memory from silently turning to zeros: the tmpfs is mounted with `huge=never`; an image is never
//! punched or truncated while mapped (eviction is unlink); a hole is filled only under a lock of its chunk; a page
//! that the tmpfs has no room for is answered by a private copy; the VMM holds a second reference to its userfaultfd.

pub mod copier;
pub mod difference;
pub mod dumped;
pub mod fill;
pub mod image;
pub mod install;
pub mod layer;
pub mod own;
pub mod pager;
pub mod stats;
pub mod working_set;
pub mod written;

/// Bytes of a page. Hearth runs on x86-64 with 4 KiB pages; a manifest of another size is refused.
pub const PAGE: usize = 4096;

/// Bytes of a chunk: the unit of compression, of a fill and of its lock. 64 KiB was the best of those measured
/// for lazy fills (larger chunks read more than is touched, smaller ones fault more often).
pub const CHUNK: usize = 64 << 10;

/// Pages of a chunk.
pub const CHUNK_PAGES: usize = CHUNK / PAGE;
