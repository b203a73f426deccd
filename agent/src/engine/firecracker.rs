//! Firecracker's programs and their version.

use super::Programs;
use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The oldest that is used: since then the userfaultfd handshake says the page size in bytes and its connection stays
/// open (Firecracker's CHANGELOG, 1.12.0).
pub const VERSION_MIN: Version = Version { major: 1, minor: 12, patch: 0 };
/// Since then a restored guest's clock can follow the host's (`clock_realtime`, CHANGELOG, 1.16.0).
const CLOCK_REALTIME: Version = Version { major: 1, minor: 16, patch: 0 };

/// Since then a load call says `track_dirty_pages`, before it says `enable_diff_snapshots` (CHANGELOG, 1.13.0).
const TRACK_DIRTY_PAGES: Version = Version { major: 1, minor: 13, patch: 0 };

/// Since then differential snapshots of larger machines are right (CHANGELOG, 1.15.0: 5705).
const LARGE_DIFFERENCES: Version = Version { major: 1, minor: 15, patch: 0 };
/// Memory above this is in a second region.
const LARGE: u64 = 3 << 30;

/// A version of Firecracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Incompatible changes.
    pub major: u32,
    /// New features; also new snapshot formats.
    pub minor: u32,
    /// Corrections.
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// Reads `1.12.1`, with or without a `v`. A part after the numbers (`-dev`) is refused: snapshots are bound to an
    /// exact version, and a development build has none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.strip_prefix('v').unwrap_or(text).split('.').map(|part| part.parse().ok());
        let version = Self { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next()?? };
        numbers.next().is_none().then_some(version)
    }

    /// Whether a load call takes `track_dirty_pages`.
    pub fn has_track_dirty_pages(self) -> bool {
        TRACK_DIRTY_PAGES <= self
    }

    /// Whether differential snapshots of a machine with so much memory are right.
    pub fn has_sound_log(self, ram_bytes: u64) -> bool {
        LARGE_DIFFERENCES <= self || ram_bytes <= LARGE
    }

    /// Whether a load call takes `clock_realtime`.
    pub fn has_clock_realtime(self) -> bool {
        CLOCK_REALTIME <= self
    }
}

/// Why Firecracker is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A program is not there, or does not start.
    #[error("{program} cannot be run ({source})")]
    Program {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No version can be read.
    #[error("`{0} --version` does not say a version such as v1.16.1")]
    Unknown(PathBuf),
    /// Too old.
    #[error("it is version {0}, {VERSION_MIN} or newer is needed")]
    Old(Version),
    /// Not of one release.
    #[error("Firecracker is version {firecracker}, its jailer {jailer}")]
    Mixed {
        /// Firecracker's.
        firecracker: Version,
        /// The jailer's.
        jailer: Version,
    },
}

/// Finds both programs; they must be of one release.
pub fn find(programs: &Programs) -> Result<Version, Unusable> {
    let firecracker = version(&programs.firecracker)?;
    let jailer = version(&programs.jailer)?;
    if firecracker < VERSION_MIN {
        return Err(Unusable::Old(firecracker));
    }
    if firecracker != jailer {
        return Err(Unusable::Mixed { firecracker, jailer });
    }
    Ok(firecracker)
}

fn version(program: &Path) -> Result<Version, Unusable> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .map_err(|source| Unusable::Program { program: program.to_owned(), source })?;
    // `Firecracker v1.12.1`, `Jailer v1.12.1`.
    let text = String::from_utf8_lossy(&output.stdout);
    let word = text.lines().next().and_then(|line| line.split_ascii_whitespace().nth(1));
    word.and_then(Version::parse).ok_or_else(|| Unusable::Unknown(program.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_and_ordered_and_nothing_else_is_read() {
        let old = Version::parse("v1.12.1").unwrap();
        let new = Version::parse("1.16.0").unwrap();
        assert!(old < new && VERSION_MIN < old);
        assert_eq!(old.to_string(), "1.12.1");
        assert!(new.has_clock_realtime() && !old.has_clock_realtime());
        for text in ["", "v1.12", "v1.12.1-dev", "1.2.3.4", "v1.x.3"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let programs = Programs {
            qemu: PathBuf::new(),
            firecracker: PathBuf::from("/nowhere/firecracker"),
            jailer: PathBuf::from("/nowhere/jailer"),
        };
        assert!(find(&programs).unwrap_err().to_string().contains("/nowhere/firecracker"));
    }
}
