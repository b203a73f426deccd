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
//! disk and back is in [`pause`], the one for going over to the next agent in [`survivor`], what it does by itself (idle
//! capsules, lifetimes, guests that do not answer) in `idle`.

pub mod activity;
pub mod capture;
pub mod console;
mod death;
pub mod disk;
pub mod flatten;
pub mod fork;
pub mod handle;
mod health;
mod idle;
pub mod ledger;
pub mod network;
pub mod parking;
pub mod pause;
pub mod paused;
pub mod registry;
pub mod restore;
pub mod room;
pub mod runner;
pub mod settings;
pub mod source;
pub mod state;
pub mod survivor;
pub mod timeouts;
