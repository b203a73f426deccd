//! Directories made, trees removed.

use super::FileError;
use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

/// Makes a directory and its parents.
pub fn make_dir(path: &Path) -> Result<(), FileError> {
    make_parents(path.parent().unwrap_or(Path::new("/")))?;
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => FileError::Exists(path.to_owned()),
            _ => FileError::Kind { path: path.to_owned(), problem: "is no directory" },
        }),
        made => made.map_err(FileError::io(path)),
    }
}

/// Makes a directory and its parents, those that are missing.
pub fn make_parents(path: &Path) -> Result<(), FileError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => return Err(FileError::Kind { path: path.to_owned(), problem: "is no directory" }),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(FileError::io(path)(error)),
        Err(_) => {}
    }
    // From the top down, without recursion: a path has up to 2,000 parts.
    let missing: Vec<PathBuf> = path
        .ancestors()
        .take_while(|path| fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
        .map(Path::to_owned)
        .collect();
    for directory in missing.iter().rev() {
        match fs::create_dir(directory) {
            // Somebody else was faster, or it is reached by `..`.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            made => made.map_err(FileError::io(directory))?,
        }
    }
    Ok(())
}

/// Removes a file, a link, or a directory with all in it.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let error = FileError::io(path);
    if matches!(path.components().next_back(), Some(Component::RootDir | Component::ParentDir) | None)
        || is_root(path)
    {
        return Err(FileError::Invalid { field: "path", problem: "is not to be removed".to_owned() });
    }
    if fs::symlink_metadata(path).map_err(&error)?.is_dir() {
        fs::remove_dir_all(path).map_err(&error)
    } else {
        fs::remove_file(path).map_err(&error)
    }
}

/// Whether a path leads to the root, however it is written. A link to it is only a link.
fn is_root(path: &Path) -> bool {
    !path.is_symlink() && fs::canonicalize(path).is_ok_and(|path| path == Path::new("/"))
}
