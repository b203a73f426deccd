//! A snapshot's manifest: versioned, checksummed.

use crate::vmm::machine::Size;
use hearth_proto::id::CapsuleId;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Version of the manifest and of the files it names. Another version is refused.
pub const VERSION: u32 = 2;

/// Largest manifest we read.
pub const BYTES_MAX: u64 = 1 << 20;

/// What a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// The snapshot's key: its folder's name.
    pub key: String,
    /// The template that it is a snapshot of.
    pub template: String,
    /// Languages with a warm context.
    pub languages: Vec<String>,
    /// The machine's size.
    pub size: Size,
    /// Where it can be restored.
    pub platform: Platform,
    /// Root filesystem it was made on; must be the same bytes at restore.
    pub rootfs_sha256: String,
    /// Milliseconds since the epoch.
    pub created_at_ms: i64,
    /// What the memory layer is a difference to; none when it holds all of the memory.
    pub parent: Option<Parent>,
    /// The capsule it was taken from; none for a template's own.
    pub capsule: Option<CapsuleId>,
    /// Bytes of the memory layer.
    pub memory_bytes: u64,
    /// The memory layer's own checksum, which names its content.
    pub memory_xxh3: u64,
    /// Checksum of the device state.
    pub device_xxh3: u64,
    /// Bytes of the device state.
    pub device_bytes: u64,
    /// Logical size of the upper.
    pub upper_bytes: u64,
}

/// The snapshot whose memory another one's is a difference to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its key.
    pub key: String,
    /// Its memory layer's checksum: a template that was built again has the same key and other memory.
    pub memory_xxh3: u64,
}

/// What a snapshot needs of a host, and what a host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// "qemu" or "firecracker".
    pub engine: String,
    /// Exact version: neither engine reads another version's device state.
    pub engine_version: String,
    /// "tcg" or "kvm".
    pub accelerator: String,
    /// CPU model the guest saw; under KVM also the host's own.
    pub cpu: String,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Rate of the host's time stamp counter, which the guest's clock goes by.
    pub tsc_khz: u64,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not ours.
    #[error("the manifest cannot be read: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Another version.
    #[error("the manifest has version {0}, this host reads {VERSION}")]
    Version(u64),
    /// Changed after it was written.
    #[error("the manifest's checksum does not match")]
    Checksum,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    xxh3: String,
    manifest: serde_json::Value,
}

impl Manifest {
    /// The file's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        let manifest = serde_json::to_value(self)?;
        let sealed = Sealed { xxh3: seal(&manifest), manifest };
        Ok(serde_json::to_vec_pretty(&sealed)?)
    }

    /// Reads the file's bytes. The version is looked at before anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let sealed: Sealed = serde_json::from_slice(bytes)?;
        let version = sealed.manifest.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if version != u64::from(VERSION) {
            return Err(ManifestError::Version(version));
        }
        if seal(&sealed.manifest) != sealed.xxh3 {
            return Err(ManifestError::Checksum);
        }
        Ok(serde_json::from_value(sealed.manifest)?)
    }
}

/// Checksum of the canonical text: serde_json writes objects with sorted keys.
fn seal(manifest: &serde_json::Value) -> String {
    format!("{:016x}", xxh3_64(manifest.to_string().as_bytes()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample() -> Manifest {
        Manifest {
            version: VERSION,
            key: "k".to_owned(),
            template: "code".to_owned(),
            languages: vec!["python".to_owned()],
            size: Size { vcpus: 1, memory_mb: 1024 },
            platform: Platform {
                engine: "qemu".to_owned(),
                engine_version: "7.2".to_owned(),
                accelerator: "tcg".to_owned(),
                cpu: "max".to_owned(),
                page_bytes: 4096,
                tsc_khz: 2_300_000,
            },
            rootfs_sha256: "ab".to_owned(),
            created_at_ms: 1,
            parent: None,
            capsule: None,
            memory_bytes: 2,
            memory_xxh3: 5,
            device_xxh3: u64::MAX,
            device_bytes: 3,
            upper_bytes: 4,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Manifest::decode(&sample().encode().unwrap()).unwrap(), sample());
    }

    #[test]
    fn another_version_is_named() {
        let manifest = Manifest { version: 1, ..sample() };
        assert!(matches!(Manifest::decode(&manifest.encode().unwrap()), Err(ManifestError::Version(1))));
    }

    proptest! {
        #[test]
        fn a_changed_manifest_is_refused_or_the_same(at: prop::sample::Index, byte: u8) {
            let mut bytes = sample().encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(manifest) = Manifest::decode(&bytes) {
                prop_assert_eq!(manifest, sample());
            }
        }
    }
}
