//! The virtual machine monitor: one process per capsule, jailed, controlled over a socket.
//!
//! ```text
//!  Parked (spawned, image mapped, pager serving) ──load──▶ Loaded (stopped) ──resume──▶ running ──stop──▶ stopped
//!  Booted (template builds)                     ──stop, save──▶ device state
//! ```

pub mod adopt;
pub mod console;
pub mod control;
pub mod disk;
pub mod firecracker;
pub mod folder;
pub mod guard;
pub mod jail;
pub mod launch;
pub mod machine;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod uid;
mod undo;
