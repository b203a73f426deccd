//! Loads kernel modules from a list: plain .ko files, in an order in which each finds what it needs.

use nix::kmod::{ModuleInitFlags, finit_module};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Why a module was not loaded.
#[derive(Debug, thiserror::Error)]
#[error("{0} cannot be loaded")]
pub struct ModuleError(PathBuf, #[source] io::Error);

/// Loads the modules listed in `list`, one path per line. One that is loaded or built in already is fine, and so is a
/// driver of something this machine does not have (ptp_kvm without KVM): what is truly needed is missed later, by name.
pub fn load_all(list: &Path) -> Result<(), ModuleError> {
    let text = fs::read_to_string(list).map_err(|error| ModuleError(list.to_owned(), error))?;
    for path in paths(&text) {
        load(path).map_err(|error| ModuleError(path.to_owned(), error))?;
    }
    Ok(())
}

/// (pure) The paths in a list; blank lines and comments are passed over.
fn paths(list: &str) -> impl Iterator<Item = &Path> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(Path::new)
}

fn load(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(nix::Error::EEXIST | nix::Error::ENODEV | nix::Error::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_paths_line_by_line() {
        let list = "# order matters\n/hearth/modules/a.ko\n\n  /hearth/modules/b.ko \n";
        assert_eq!(
            paths(list).collect::<Vec<_>>(),
            ["/hearth/modules/a.ko", "/hearth/modules/b.ko"].map(Path::new)
        );
    }
}
