//! How a capsule reads in public: the compatible shape, and beside it what is ours.

use hearth_proto::wire::{
    agent::{CapsuleState, NetworkPolicy, TimeoutAction},
    pool::CapsuleRecord,
};
use serde::Serialize;
use std::collections::BTreeMap;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The public words for a capsule's state: a strict enum in clients, so transitions have the word of the state they
/// come from or go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Starting,
    Running,
    Paused,
    Stopped,
    Missing,
    Error,
}

impl Status {
    pub(crate) fn of(state: CapsuleState) -> Self {
        match state {
            CapsuleState::Starting | CapsuleState::Parked | CapsuleState::Resuming => Self::Starting,
            CapsuleState::Running | CapsuleState::Pausing | CapsuleState::Snapshotting => Self::Running,
            CapsuleState::Paused => Self::Paused,
            CapsuleState::Stopping | CapsuleState::Stopped => Self::Stopped,
            CapsuleState::Failed => Self::Error,
            CapsuleState::Unspecified => Self::Missing,
        }
    }

    /// The states that a word of the compatible API's enum stands for; none for a word that is not in it.
    pub(crate) fn states(word: &str) -> Option<&'static [CapsuleState]> {
        Some(match word {
            "pending" | "starting" | "resuming" => &[CapsuleState::Starting, CapsuleState::Resuming],
            "running" | "pausing" | "snapshotting" => {
                &[CapsuleState::Running, CapsuleState::Pausing, CapsuleState::Snapshotting]
            }
            "paused" | "hibernated" => &[CapsuleState::Paused],
            "stopping" | "stopped" => &[CapsuleState::Stopping, CapsuleState::Stopped],
            "missing" => &[CapsuleState::Unspecified],
            "error" => &[CapsuleState::Failed],
            _ => return None,
        })
    }
}

/// A capsule in the compatible shape, and beside it what is ours.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct CapsuleBody {
    id: String,
    status: Status,
    template: String,
    vcpus: u32,
    memory_mb: u64,
    /// Inactivity timeout; 0: none.
    timeout_sec: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    /// Why it stopped, failed or is missing.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    created_at: Option<String>,
    last_updated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_active_at: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_zero")]
    disk_size_mb: u64,
    /// What its disk takes on the host; only of a single capsule.
    #[serde(skip_serializing_if = "is_zero")]
    disk_used_mb: u64,
    timeout_action: &'static str,
    auto_resume: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    public_ports: Vec<u32>,
    /// `none`, `internet`, or an object with `internet`, `allow` and `deny`.
    network: serde_json::Value,
    /// Opens its ports to who has it. Only of a single capsule.
    #[serde(skip_serializing_if = "String::is_empty")]
    access_token: String,
}

impl From<CapsuleRecord> for CapsuleBody {
    fn from(record: CapsuleRecord) -> Self {
        Self {
            status: Status::of(record.state()),
            timeout_action: action(record.timeout_action()),
            id: record.capsule_id,
            template: record.template,
            vcpus: record.vcpus,
            memory_mb: record.memory_mb,
            timeout_sec: record.timeout_sec,
            name: record.name,
            reason: record.reason,
            created_at: instant(record.created_at_ms),
            last_updated: instant(record.last_updated_ms),
            started_at: instant(record.started_at_ms),
            last_active_at: instant(record.last_active_at_ms),
            metadata: record.metadata.into_iter().collect(),
            disk_size_mb: record.disk_mb,
            disk_used_mb: record.disk_used_mb,
            auto_resume: record.auto_resume,
            public_ports: record.public_ports,
            network: network(record.network.unwrap_or_default()),
            access_token: record.access_token,
        }
    }
}

impl CapsuleBody {
    /// The same in a list, which has no secrets.
    pub(crate) fn listed(record: CapsuleRecord) -> Self {
        Self { access_token: String::new(), disk_used_mb: 0, ..record.into() }
    }
}

fn action(action: TimeoutAction) -> &'static str {
    match action {
        TimeoutAction::Unspecified | TimeoutAction::Pause => "pause",
        TimeoutAction::Destroy => "destroy",
    }
}

fn network(policy: NetworkPolicy) -> serde_json::Value {
    match policy {
        NetworkPolicy { internet, allow, deny, .. } if allow.is_empty() && deny.is_empty() => {
            if internet {
                "internet".into()
            } else {
                "none".into()
            }
        }
        NetworkPolicy { internet, allow, deny, .. } => {
            serde_json::json!({ "internet": internet, "allow": allow, "deny": deny })
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// RFC 3339 in UTC and whole seconds; 0 stands for an instant that has not come.
pub(crate) fn instant(milliseconds: i64) -> Option<String> {
    if milliseconds <= 0 {
        return None;
    }
    OffsetDateTime::from_unix_timestamp(milliseconds / 1_000).ok()?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capsule_reads_as_the_compatible_api_says() {
        let record = CapsuleRecord {
            capsule_id: "cl-0".to_owned(),
            template: "code".to_owned(),
            state: CapsuleState::Running.into(),
            vcpus: 1,
            memory_mb: 512,
            created_at_ms: 1_777_716_000_999,
            last_updated_ms: 1_777_716_000_999,
            access_token: "secret".to_owned(),
            ..CapsuleRecord::default()
        };
        let body = serde_json::to_value(CapsuleBody::from(record.clone())).expect("JSON");
        let expected = serde_json::json!({
            "id": "cl-0", "status": "running", "template": "code", "vcpus": 1, "memory_mb": 512, "timeout_sec": 0,
            "created_at": "2026-05-02T10:00:00Z", "last_updated": "2026-05-02T10:00:00Z",
            "timeout_action": "pause", "auto_resume": false, "network": "none", "access_token": "secret",
        });
        assert_eq!(body, expected);
        let listed = serde_json::to_value(CapsuleBody::listed(record)).expect("JSON");
        assert_eq!(listed.get("access_token"), None);
    }

    #[test]
    fn every_state_has_a_public_word_that_finds_it() {
        let words = [
            (CapsuleState::Starting, "starting"),
            (CapsuleState::Running, "running"),
            (CapsuleState::Pausing, "running"),
            (CapsuleState::Paused, "paused"),
            (CapsuleState::Resuming, "starting"),
            (CapsuleState::Snapshotting, "running"),
            (CapsuleState::Stopping, "stopped"),
            (CapsuleState::Stopped, "stopped"),
            (CapsuleState::Failed, "error"),
            (CapsuleState::Unspecified, "missing"),
        ];
        for (state, word) in words {
            assert_eq!(serde_json::to_value(Status::of(state)).expect("JSON"), word);
            assert!(Status::states(word).is_some_and(|states| states.contains(&state)), "{word}");
        }
        assert_eq!(Status::states("parked"), None);
    }

    #[test]
    fn policies_have_the_short_form_where_there_is_one() {
        let policy = |internet, allow: &[&str]| NetworkPolicy {
            internet,
            allow: allow.iter().map(|range| (*range).to_owned()).collect(),
            ..NetworkPolicy::default()
        };
        assert_eq!(network(policy(false, &[])), "none");
        assert_eq!(network(policy(true, &[])), "internet");
        assert_eq!(network(policy(false, &["10.0.0.0/8"]))["allow"][0], "10.0.0.0/8");
    }
}
