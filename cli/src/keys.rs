//! `hearth keys`: the first API key, as the data folder has it.

use crate::args::{KeysArgs, KeysCommand};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Hearth never ran here, or somebody took the file away.
    #[error(
        "there is no API key at {0}: hearth up makes one at its first start; HEARTH_DIR names the data folder"
    )]
    Absent(PathBuf),
    /// It is root's.
    #[error("{0} is readable by root only: use sudo")]
    Closed(PathBuf),
    /// It cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds something else.
    #[error("{0} does not hold an API key")]
    Form(PathBuf),
}

/// Shows keys.
pub fn keys(args: &KeysArgs) -> anyhow::Result<ExitCode> {
    let KeysCommand::Show { dir } = &args.command;
    println!("{}", first(dir)?);
    Ok(ExitCode::SUCCESS)
}

/// The first API key of a data folder.
pub fn first(dir: &Path) -> Result<String, KeyError> {
    let path = dir.join("api-key");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => KeyError::Absent(path),
                io::ErrorKind::PermissionDenied => KeyError::Closed(path),
                _ => KeyError::File { path, source: error },
            });
        }
    };
    let key = text.trim();
    let usable = key.starts_with("wrn_") && key.bytes().all(|byte| byte.is_ascii_graphic());
    if usable { Ok(key.to_owned()) } else { Err(KeyError::Form(path)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_shown_or_the_reason_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let says = |result: Result<String, KeyError>| result.unwrap_err().to_string();
        assert!(says(first(folder.path())).contains("hearth up makes one"));
        fs::write(folder.path().join("api-key"), "wrn_0123\n").unwrap();
        assert_eq!(first(folder.path()).unwrap(), "wrn_0123");
        fs::write(folder.path().join("api-key"), "something else").unwrap();
        assert!(says(first(folder.path())).contains("does not hold an API key"));
        let file = folder.path().join("api-key");
        assert!(says(first(&file)).starts_with(&file.join("api-key").display().to_string()));
    }
}
