//! Disks: a read-only root filesystem shared by all capsules of a template, and a sparse writable layer per capsule
//! (the upper), which belongs to its memory: the two are saved and copied as a pair.

pub mod base;
pub mod size;
pub mod sparse;
pub mod store;
