//! The life of a capsule.
//!
//! ```text
//!            ┌─────────── Failed ◀──── VMM or pager died, or a step failed that cannot be undone
//!            │               ▲
//!  Starting ─┼──▶ Parked ────┼──claim──▶ Running ──destroy──▶ Stopping ──▶ Stopped
//!            └──────────────────────────▶ ▲ │ ▲
//!                        Snapshotting ◀───┘ │ └─── Resuming ◀─── Paused
//!                        (and back)         └────▶ Pausing ─────────▲
//! ```
//!
//! One task ([`runner`]) owns each capsule; everybody else holds a [`handle::Handle`]. The task's part for going to
//! disk and back is in [`pause`].

pub mod capture;
pub mod fork;
pub mod handle;
pub mod ledger;
pub mod network;
pub mod parking;
pub mod pause;
pub mod paused;
pub mod registry;
pub mod restore;
pub mod runner;
pub mod settings;
pub mod source;
pub mod state;
