//! What a test does when the machine lacks something that it needs: it fails and names it, unless `HEARTH_TEST_SKIP`
//! (names with commas between them) lists it. Then it is skipped, and says so on a line that `make test` counts.
//!
//! Names: `cgroup` (a cgroup v2 to write to), `cgroup-memory` (with the memory controller), `python` (one with
//! IPython), `root`, `swap` (a swap file that can be turned on). `make test` itself also knows `capsules`, `images` and `shellcheck`.

#![forbid(unsafe_code)]

use std::io::Write;

/// The list of names.
const VARIABLE: &str = "HEARTH_TEST_SKIP";

/// For a test that lacks `capability`: true when the test is to be skipped. `help` says what is missing and how to get
/// it.
///
/// # Panics
/// When the capability is not listed: this is how the test fails.
pub fn lacks(capability: &str, help: &str) -> bool {
    let listed = std::env::var(VARIABLE).unwrap_or_default();
    assert!(
        lists(&listed, capability),
        "this test needs `{capability}`: {help} ({VARIABLE}={capability} skips it)"
    );
    // Not `eprintln!`: the test harness would keep that to itself.
    let line = format!("test skipped: {capability}: {help}\n");
    // A line that cannot be written has nowhere to be reported.
    let _ = std::io::stderr().write_all(line.as_bytes());
    true
}

fn lists(listed: &str, capability: &str) -> bool {
    listed.split([',', ' ']).any(|name| name == capability)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_count() {
        assert!(lists("python", "python"));
        assert!(lists("root,cgroup-memory", "cgroup-memory"));
        assert!(lists("root, cgroup", "cgroup"));
        for listed in ["", "pythons", "cgroup-memory", "all"] {
            assert!(!lists(listed, "python") && !lists(listed, "cgroup"), "{listed}");
        }
    }

    #[test]
    #[should_panic(expected = "this test needs `nothing-has-this`: plug it in")]
    fn what_is_not_listed_fails_by_name() {
        lacks("nothing-has-this", "plug it in");
    }
}
