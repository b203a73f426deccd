//! Users' capsules: each has a row, and lives until its user ends it or it fails.
//!
//! ```text
//!             create ─▶ running ──destroy──▶ stopping ─▶ stopped
//!          paused ◀──────╯ │▲ ╰──its host says so──▶ failed
//!             ╰── used ──▶ ││
//!        host forgot it    ▼│ host has it again
//!                       missing
//! ```
//! The inactivity timeout is recorded with the capsule; nothing acts on it yet.

pub(crate) mod book;
pub(crate) mod clerk;
pub(crate) mod create;
pub(crate) mod destroy;
pub(crate) mod lookup;
pub(crate) mod state;

use hearth_proto::id::{CapsuleId, TeamId};
use state::State;
use std::collections::BTreeMap;
use time::OffsetDateTime;

/// A user's capsule, as in its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: CapsuleId,
    pub(crate) team: TeamId,
    pub(crate) template: String,
    pub(crate) host_id: String,
    pub(crate) state: State,
    /// Why it stopped or failed; empty otherwise.
    pub(crate) reason: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u64,
    /// Zero: none.
    pub(crate) timeout_sec: u64,
    pub(crate) labels: Labels,
    pub(crate) times: Times,
}

/// What its user wrote on a capsule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) name: String,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// When things happened to a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) created: OffsetDateTime,
    pub(crate) started: Option<OffsetDateTime>,
    pub(crate) last_active: Option<OffsetDateTime>,
    pub(crate) updated: OffsetDateTime,
}

/// A capsule went to another state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) id: CapsuleId,
    pub(crate) state: State,
    pub(crate) reason: String,
    pub(crate) at: OffsetDateTime,
}
