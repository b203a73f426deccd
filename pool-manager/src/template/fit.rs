//! Which baked variant of a template fits a wish. Pure. A snapshot's size cannot be changed after it was taken.

use super::Template;
use std::collections::BTreeSet;

/// The size somebody asks for; 0: whatever the template has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u64,
}

/// No variant is large enough. The text names the field and the sizes there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("memory_mb: no variant of the template has {asked}; there are: {}", list(.sizes))]
    Memory { asked: u64, sizes: BTreeSet<u64> },
    #[error("vcpus: no variant of the template with this memory has {asked}; there are: {}", list(.sizes))]
    Vcpus { asked: u32, sizes: BTreeSet<u32> },
}

fn list<T: ToString>(sizes: &BTreeSet<T>) -> String {
    sizes.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// The smallest variant with at least `wish`, by memory first.
pub(crate) fn fit<'a>(variants: &[&'a Template], wish: Size) -> Result<&'a Template, Unfit> {
    let roomy: Vec<&Template> =
        variants.iter().copied().filter(|variant| variant.memory_mb >= wish.memory_mb).collect();
    if roomy.is_empty() {
        let sizes = variants.iter().map(|variant| variant.memory_mb).collect();
        return Err(Unfit::Memory { asked: wish.memory_mb, sizes });
    }
    roomy
        .iter()
        .copied()
        .filter(|variant| variant.vcpus >= wish.vcpus)
        .min_by_key(|variant| (variant.memory_mb, variant.vcpus))
        .ok_or_else(|| {
            let sizes = roomy.iter().map(|variant| variant.vcpus).collect();
            Unfit::Vcpus { asked: wish.vcpus, sizes }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variant(vcpus: u32, memory_mb: u64) -> Template {
        Template {
            name: "code".to_owned(),
            snapshot_key: String::new(),
            vcpus,
            memory_mb,
            languages: Vec::new(),
            size_bytes: 0,
            created_at_ms: 0,
        }
    }

    proptest! {
        #[test]
        fn the_smallest_that_fits_is_chosen_or_none_does(
            sizes in prop::collection::vec((1u32..5, 1u64..2000), 1..6),
            (vcpus, memory_mb) in (0u32..6, 0u64..2500),
        ) {
            let variants: Vec<_> = sizes.iter().map(|(vcpus, memory_mb)| variant(*vcpus, *memory_mb)).collect();
            let fits = |variant: &&Template| variant.vcpus >= vcpus && variant.memory_mb >= memory_mb;
            let best = variants.iter().filter(fits).map(|variant| variant.memory_mb).min();
            let chosen = fit(&variants.iter().collect::<Vec<_>>(), Size { vcpus, memory_mb });
            prop_assert_eq!(chosen.as_ref().ok().map(|variant| variant.memory_mb), best);
            if let Ok(variant) = chosen {
                prop_assert!(fits(&variant));
            }
        }
    }

    #[test]
    fn a_refusal_names_the_field_and_the_sizes() {
        let (small, large) = (variant(1, 512), variant(2, 1024));
        let variants = [&small, &large];
        let memory = fit(&variants, Size { vcpus: 0, memory_mb: 4096 }).unwrap_err();
        assert_eq!(
            memory.to_string(),
            "memory_mb: no variant of the template has 4096; there are: 512, 1024"
        );
        let vcpus = fit(&variants, Size { vcpus: 8, memory_mb: 600 }).unwrap_err();
        assert_eq!(
            vcpus.to_string(),
            "vcpus: no variant of the template with this memory has 8; there are: 2"
        );
    }
}
