//! The life of a capsule.
//!
//! ```text
//!            ┌─────────── Failed ◀──── VMM or pager died, or a step failed
//!            │               ▲
//!  Starting ─┼──▶ Parked ────┼──claim──▶ Running ──destroy──▶ Stopping ──▶ Stopped
//!            └──────────────────────────▶   │
//! ```
//!
//! One task ([`runner`]) owns each capsule; everybody else holds a [`handle::Handle`].

pub mod handle;
pub mod ledger;
pub mod parking;
pub mod registry;
pub mod runner;
pub mod state;
