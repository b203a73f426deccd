//! Users' capsules: each has a row, and lives until its user ends it or it fails.
//!
//! ```text
//!                  create, fork ─▶ running ──destroy──▶ stopping ─▶ stopped
//!   paused ◀──its user, or its host──╯ │▲ ╰──its host says so──▶ failed
//!      ╰──its user, or any use of it──▶││
//!                     host forgot it   ▼│ host has it again
//!                                    missing
//! ```
//! What is under way (a pause, a fork) is not a state of the row but a place in the book, see [`operation`]: a
//! pool-manager that dies in the middle of it finds out from the host what came of it.

pub(crate) mod book;
pub(crate) mod clerk;
pub(crate) mod create;
pub(crate) mod destroy;
pub(crate) mod events;
pub(crate) mod fork;
pub(crate) mod keeper;
pub(crate) mod lifecycle;
pub(crate) mod locate;
pub(crate) mod lookup;
pub(crate) mod once;
pub(crate) mod operation;
pub(crate) mod page;
pub(crate) mod quota;
pub(crate) mod settings;
pub(crate) mod state;
pub(crate) mod token;

use hearth_proto::id::{CapsuleId, TeamId};
use operation::Kind;
use page::Wanted;
use settings::Settings;
use state::State;
use std::collections::BTreeMap;
use time::OffsetDateTime;
use token::AccessToken;

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
    /// Who put it on disk, or is doing so.
    pub(crate) paused_by: PausedBy,
    /// What is being done with it; never in the row.
    pub(crate) under_way: Option<Kind>,
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u64,
    pub(crate) disk: Disk,
    pub(crate) settings: Settings,
    pub(crate) token: AccessToken,
    pub(crate) labels: Labels,
    pub(crate) times: Times,
}

/// Who put a capsule on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PausedBy {
    /// Only its user brings it back, unless it is made to come back by itself.
    User,
    /// Its host, after inactivity or at its end: any use brings it back.
    Host,
}

impl PausedBy {
    /// As in the table's column.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Host => "host",
        }
    }
}

/// A capsule's disk, in MiB; 0: not known yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) size_mb: u64,
    /// What it took on its host when it was looked at last.
    pub(crate) used_mb: u64,
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

/// Now, as exact as a row keeps it (microseconds): an instant in memory and in its row are the same.
pub(crate) fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_microsecond(now.microsecond()).unwrap_or(now)
}

impl Record {
    /// The state as its user sees it.
    pub(crate) fn shown(&self) -> Wanted {
        match (self.state, self.under_way) {
            (State::Running | State::Paused, Some(Kind::Pause)) => Wanted::Pausing,
            (State::Running | State::Paused, Some(Kind::Resume | Kind::Rollback)) => Wanted::Resuming,
            (State::Running, Some(Kind::Fork | Kind::Snapshot)) => Wanted::Snapshotting,
            (state, _) => Wanted::At(state),
        }
    }
}

#[cfg(test)]
impl Record {
    /// A running capsule without anything special, made at the epoch.
    pub(crate) fn plain(team: TeamId) -> Self {
        let epoch = OffsetDateTime::UNIX_EPOCH;
        Self {
            id: CapsuleId::new(),
            team,
            template: "code".to_owned(),
            host_id: "host".to_owned(),
            state: State::Running,
            reason: String::new(),
            paused_by: PausedBy::Host,
            under_way: None,
            vcpus: 1,
            memory_mb: 512,
            disk: Disk::default(),
            settings: Settings::default(),
            token: AccessToken::default(),
            labels: Labels::default(),
            times: Times { created: epoch, started: Some(epoch), last_active: None, updated: epoch },
        }
    }
}
