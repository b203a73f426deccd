//! Templates: what capsules start from, by which names, in which sizes.

pub(crate) mod alias;
pub(crate) mod catalogue;
pub(crate) mod ensure;
pub(crate) mod fit;

use crate::error::Refused;
use fit::Size;
use hearth_proto::wire::agent;

/// A template with its newest snapshot, whose size is baked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) name: String,
    /// Content key of the snapshot.
    pub(crate) snapshot_key: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u64,
    pub(crate) languages: Vec<String>,
    pub(crate) size_bytes: u64,
    pub(crate) created_at_ms: i64,
}

impl Template {
    /// Its size.
    pub(crate) fn size(&self) -> Size {
        Size { vcpus: self.vcpus, memory_mb: self.memory_mb }
    }

    /// Whether it runs `language`. Empty: its first.
    pub(crate) fn speaks(&self, language: &str) -> Result<(), Refused> {
        if language.is_empty() || self.languages.iter().any(|known| known == language) {
            return Ok(());
        }
        let known = self.languages.join(", ");
        let name = &self.name;
        Err(Refused::Invalid(format!(
            "language `{language}` is not in template `{name}`; there are: {known}"
        )))
    }
}

impl From<agent::Template> for Template {
    fn from(wire: agent::Template) -> Self {
        Self {
            name: wire.name,
            snapshot_key: wire.snapshot_key,
            vcpus: wire.vcpus,
            memory_mb: wire.memory_mb,
            languages: wire.languages,
            size_bytes: wire.size_bytes,
            created_at_ms: wire.created_at_ms,
        }
    }
}

impl From<Template> for agent::Template {
    fn from(template: Template) -> Self {
        Self {
            name: template.name,
            snapshot_key: template.snapshot_key,
            vcpus: template.vcpus,
            memory_mb: template.memory_mb,
            languages: template.languages,
            size_bytes: template.size_bytes,
            created_at_ms: template.created_at_ms,
        }
    }
}
