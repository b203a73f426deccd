//! The languages there are, and what each needs to start a kernel.

mod python;

use crate::config::Config;
use std::path::{Path, PathBuf};

/// A language; the set is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Language {
    Python,
}

/// How to start one kernel: a program and the arguments before the two file descriptor numbers
/// (socket, window).
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<PathBuf>,
    pub(crate) env: Vec<(&'static str, &'static str)>,
}

impl Language {
    /// Every language.
    pub(crate) const ALL: [Self; 1] = [Self::Python];

    /// The language of this name; empty means Python.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::Python);
        }
        Self::ALL.into_iter().find(|language| language.name() == name)
    }

    /// The public name, also the name of its default context.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
        }
    }

    /// The kernel's program files, to be written to its folder before a start.
    pub(crate) fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Python => python::FILES,
        }
    }

    /// How to start a kernel whose program files are in `folder`.
    pub(crate) fn command(self, config: &Config, folder: &Path) -> Command {
        match self {
            Self::Python => python::command(config, folder),
        }
    }

    /// Cells that go the way of the most common ones, for a rehearsal after a restore.
    pub(crate) fn rehearsal(self) -> &'static [&'static str] {
        match self {
            Self::Python => python::REHEARSAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_empty_means_python() {
        for language in Language::ALL {
            assert_eq!(Language::parse(language.name()), Some(language));
        }
        assert_eq!(Language::parse(""), Some(Language::Python));
        assert_eq!(Language::parse("cobol"), None);
    }
}
