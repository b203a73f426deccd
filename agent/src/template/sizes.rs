//! (pure) Sizes of machines: a snapshot has the one it was made with, and a template may be baked in several.

use crate::vmm::machine::Size;
use std::fmt;

/// What a capsule is asked to have; 0: whatever there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u64,
}

/// No size that is baked is large enough.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "nothing of at least {wanted} is baked, and a capsule has the size of its snapshot: there is {there}; bake another \
     with EnsureTemplate"
)]
pub struct NoSize {
    wanted: Wanted,
    there: String,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.vcpus, self.memory_mb)
    }
}

fn show(f: &mut fmt::Formatter<'_>, vcpus: u32, memory_mb: u64) -> fmt::Result {
    write!(f, "{vcpus} vcpus with {memory_mb} MiB")
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.vcpus, self.memory_mb)
    }
}

impl Wanted {
    /// Whether a machine of this size is at least what is asked for.
    fn fits(self, size: Size) -> bool {
        self.vcpus <= size.vcpus && self.memory_mb <= size.memory_mb
    }

    /// The size to bake: what is not asked for is the usual.
    pub fn or(self, usual: Size) -> Size {
        let vcpus = if self.vcpus == 0 { usual.vcpus } else { self.vcpus };
        Size { vcpus, memory_mb: if self.memory_mb == 0 { usual.memory_mb } else { self.memory_mb } }
    }
}

/// Which of the `baked` sizes a capsule gets: the `usual` one when nothing is asked for, else the smallest that has as
/// much as is asked for, by memory first.
pub fn choose(baked: &[Size], usual: Size, wanted: Wanted) -> Result<Size, NoSize> {
    if wanted == Wanted::default() && baked.contains(&usual) {
        return Ok(usual);
    }
    let mut sizes = baked.to_vec();
    sizes.sort_by_key(|size| (size.memory_mb, size.vcpus));
    let found = sizes.iter().copied().find(|size| wanted.fits(*size));
    found.ok_or_else(|| NoSize {
        wanted,
        there: sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    })
}

/// Why a size cannot be baked: the field and the reason.
pub fn check(size: Size, image_budget_mb: u64) -> Result<(), (&'static str, String)> {
    if !(1..=16).contains(&size.vcpus) {
        return Err(("vcpus", format!("{} is not from 1 to 16", size.vcpus)));
    }
    if !(256..=65_536).contains(&size.memory_mb) || !size.memory_mb.is_multiple_of(64) {
        return Err(("memory_mb", format!("{} is not a multiple of 64 from 256 to 65536", size.memory_mb)));
    }
    if image_budget_mb < size.memory_mb * 2 {
        let most = image_budget_mb / 2;
        return Err((
            "memory_mb",
            format!("{} is more than half of HEARTH_IMAGE_BUDGET_MB: at most {most}", size.memory_mb),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn size(vcpus: u32, memory_mb: u64) -> Size {
        Size { vcpus, memory_mb }
    }

    const BAKED: [Size; 4] = [size(4, 4096), size(1, 1024), size(2, 1024), size(1, 8192)];

    #[test]
    fn the_smallest_that_fits_is_taken() {
        let usual = size(2, 1024);
        for (vcpus, memory_mb, expected) in [
            (0, 0, usual),
            (1, 0, size(1, 1024)),
            (0, 1, size(1, 1024)),
            (2, 0, size(2, 1024)),
            (2, 1025, size(4, 4096)),
            (1, 5000, size(1, 8192)),
            (4, 4096, size(4, 4096)),
        ] {
            assert_eq!(
                choose(&BAKED, usual, Wanted { vcpus, memory_mb }),
                Ok(expected),
                "{vcpus} {memory_mb}"
            );
        }
        assert_eq!(
            choose(&BAKED, size(3, 512), Wanted::default()),
            Ok(size(1, 1024)),
            "the usual is not baked"
        );
    }

    #[test]
    fn a_refusal_names_what_is_asked_for_and_what_there_is() {
        let error = choose(&BAKED, BAKED[0], Wanted { vcpus: 2, memory_mb: 8192 }).unwrap_err().to_string();
        for part in
            ["2 vcpus with 8192 MiB", "1 vcpus with 1024 MiB", "4 vcpus with 4096 MiB", "EnsureTemplate"]
        {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn sizes_that_cannot_be_baked_are_refused_by_field() {
        assert_eq!(check(size(1, 1024), 2048), Ok(()));
        for (bad, field) in [
            (size(0, 1024), "vcpus"),
            (size(17, 1024), "vcpus"),
            (size(1, 100), "memory_mb"),
            (size(1, 2048), "memory_mb"),
        ] {
            assert_eq!(check(bad, 2048).unwrap_err().0, field, "{bad}");
        }
        assert_eq!(Wanted { vcpus: 2, memory_mb: 0 }.or(size(1, 512)), size(2, 512));
        assert_eq!(Wanted { vcpus: 0, memory_mb: 256 }.or(size(1, 512)), size(1, 256));
    }
}
