//! Names under which a template is known. Pure.

/// The template with Python and its kernels.
pub(crate) const CODE: &str = "code";

/// The template that `name` means: clients of other services know it by other names, and no name is the default.
pub(crate) fn canonical(name: &str) -> &str {
    match name {
        "" | "minimal" | "minimal-ubuntu" | "code-runner-beta" => CODE,
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_names_of_other_services_mean_code() {
        for name in ["", "minimal", "minimal-ubuntu", "code-runner-beta", "code"] {
            assert_eq!(canonical(name), CODE);
        }
    }

    proptest! {
        #[test]
        fn a_canonical_name_stays(name in ".{0,20}") {
            prop_assert_eq!(canonical(canonical(&name)), canonical(&name));
        }
    }
}
