//! Named snapshots of teams' capsules: templates of their own. The files are on one host; the row says so.
//!
//! ```text
//!   making ──captured──▶ ready ──deleted, overwritten──▶ deleted ──files gone──▶ no row
//!      ╰──failed, or pool-manager ended meanwhile───────────▶╯
//! ```
//! The row comes first, so a snapshot that nobody knows is never left on a host.

pub(crate) mod leftovers;
pub(crate) mod shelf;

use crate::template::Template;
use hearth_proto::id::{CapsuleId, SnapshotId, TeamId};
use time::OffsetDateTime;

/// A named snapshot, as in its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) id: SnapshotId,
    pub(crate) team: TeamId,
    pub(crate) name: String,
    /// The capsule it was taken from, and the template that came from.
    pub(crate) capsule: CapsuleId,
    pub(crate) template: String,
    pub(crate) host_id: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u64,
    pub(crate) size_bytes: u64,
    pub(crate) created: OffsetDateTime,
}

impl Snapshot {
    /// The template that it acts as.
    pub(crate) fn as_template(&self) -> Template {
        Template {
            name: self.name.clone(),
            snapshot_key: self.id.to_string(),
            vcpus: self.vcpus,
            memory_mb: self.memory_mb,
            languages: Vec::new(),
            size_bytes: self.size_bytes,
            created_at_ms: 0,
        }
    }
}

/// Whether a name has the form that templates and snapshots have: a letter or digit, then up to 63 of those and `._-`.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_form() {
        for name in ["a", "template-0123abcd", "A.b_c-d", &"x".repeat(64)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-a", ".a", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
