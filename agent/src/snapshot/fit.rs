//! (pure) Whether a host can restore a snapshot, and if not, why.

use super::manifest::{Manifest, Platform};

/// Why a snapshot does not fit a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("made with {field} `{made_with}`, this host has `{here}`")]
pub struct Misfit {
    /// What differs.
    pub field: &'static str,
    /// The snapshot's.
    pub made_with: String,
    /// The host's.
    pub here: String,
}

/// Counter rates may differ by one part in this.
const TSC_TOLERANCE: u64 = 1000;

/// Compares a snapshot with this host.
pub fn check(manifest: &Manifest, host: &Platform, rootfs_sha256: &str) -> Result<(), Misfit> {
    let made = &manifest.platform;
    let (made_page, host_page) = (made.page_bytes.to_string(), host.page_bytes.to_string());
    let pairs = [
        ("engine", &made.engine, &host.engine),
        ("engine version", &made.engine_version, &host.engine_version),
        ("accelerator", &made.accelerator, &host.accelerator),
        ("CPU", &made.cpu, &host.cpu),
        ("page size", &made_page, &host_page),
    ];
    for (field, made_with, here) in pairs {
        if made_with != here {
            return Err(Misfit { field, made_with: made_with.clone(), here: here.clone() });
        }
    }
    // A guest's clock that is off by more would gain or lose 90 s a day between corrections.
    if made.tsc_khz / TSC_TOLERANCE < made.tsc_khz.abs_diff(host.tsc_khz) {
        return Err(Misfit {
            field: "time stamp counter (kHz)",
            made_with: made.tsc_khz.to_string(),
            here: host.tsc_khz.to_string(),
        });
    }
    if manifest.rootfs_sha256 != rootfs_sha256 {
        return Err(Misfit {
            field: "root filesystem",
            made_with: manifest.rootfs_sha256.clone(),
            here: rootfs_sha256.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::manifest::tests::sample, *};

    #[test]
    fn the_same_host_fits_and_each_difference_is_named() {
        let manifest = sample();
        let host = manifest.platform.clone();
        assert_eq!(check(&manifest, &host, "ab"), Ok(()));
        let newer = Platform { engine_version: "10.0".to_owned(), ..host.clone() };
        assert_eq!(check(&manifest, &newer, "ab").unwrap_err().field, "engine version");
        let kvm = Platform { accelerator: "kvm".to_owned(), ..host.clone() };
        assert_eq!(check(&manifest, &kvm, "ab").unwrap_err().field, "accelerator");
        let near = Platform { tsc_khz: host.tsc_khz + 100, ..host.clone() };
        assert_eq!(check(&manifest, &near, "ab"), Ok(()));
        let far = Platform { tsc_khz: 2_400_000, ..host.clone() };
        assert_eq!(check(&manifest, &far, "ab").unwrap_err().field, "time stamp counter (kHz)");
        assert_eq!(check(&manifest, &host, "cd").unwrap_err().field, "root filesystem");
    }
}
