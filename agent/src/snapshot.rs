//! The snapshot store: frozen capsules on disk, whole or not at all.
//!
//! ```text
//! <store>/<key>/manifest.json   what it is, what it fits, size and checksum of each file
//!               memory.layer    guest memory (memory::layer)
//!               device.state    QEMU's device state
//!               upper.img       the writable layer of the same instant, sparse
//! ```

pub mod fit;
pub mod manifest;
pub mod store;
