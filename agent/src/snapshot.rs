//! The snapshot store: frozen capsules on disk, whole or not at all.
//!
//! ```text
//! <store>/<key>/manifest.json   what it is, what it fits, its parent, size and checksum of each file
//!               memory.layer    guest memory (memory::layer), or its difference to the parent's
//!               device.state    QEMU's device state
//!               upper.img       the writable layer of the same instant, sparse
//! ```
//!
//! Templates' snapshots hold all of their memory and lie in the cache. Capsules' own lie in the data folder and are
//! differences to a template's ([`generation`]).

pub mod fit;
pub mod generation;
pub mod manifest;
pub mod store;
