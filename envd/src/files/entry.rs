//! What is known of one file.

use super::FileError;
use crate::user::Names;
use std::{
    fs::{self, Metadata},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A link that leads nowhere.
    Symlink,
    /// Socket, pipe, device.
    Other,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last part of its path.
    pub name: Vec<u8>,
    /// Its path as it was named, made absolute.
    pub path: Vec<u8>,
    /// What it is; of a link, what it leads to.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Permission bits, of a link's target.
    pub mode: u32,
    /// As `ls -l` shows them; a link begins with L.
    pub permissions: String,
    /// Name or number.
    pub owner: String,
    /// Name or number.
    pub group: String,
    /// Milliseconds since the epoch.
    pub modified_at_ms: i64,
    /// Where a link points.
    pub symlink_target: Option<Vec<u8>>,
    /// Bytes it takes on disk.
    pub disk_bytes: u64,
}

impl Entry {
    /// What is at `path` now.
    pub fn at(path: &Path, names: &Names) -> Result<Self, FileError> {
        let own = fs::symlink_metadata(path).map_err(FileError::io(path))?;
        let mut found = own.clone();
        let mut symlink_target = None;
        if own.is_symlink() {
            let target = fs::read_link(path).map_err(FileError::io(path))?;
            symlink_target = Some(target.as_os_str().as_bytes().to_vec());
            found = fs::metadata(path).unwrap_or(own);
        }
        let name = path.components().next_back().map(|part| part.as_os_str().as_bytes().to_vec());
        let kind = Kind::of(&found);
        Ok(Self {
            name: name.unwrap_or_default(),
            path: path.as_os_str().as_bytes().to_vec(),
            kind,
            size: found.size(),
            mode: found.mode() & 0o7777,
            permissions: permissions(found.mode(), symlink_target.is_some()),
            owner: names.user_name(found.uid()).map_or_else(|| found.uid().to_string(), str::to_owned),
            group: names.group_name(found.gid()).map_or_else(|| found.gid().to_string(), str::to_owned),
            modified_at_ms: found.mtime().saturating_mul(1000).saturating_add(found.mtime_nsec() / 1_000_000),
            symlink_target,
            disk_bytes: found.blocks().saturating_mul(512),
        })
    }
}

impl Kind {
    /// What a file is by its status.
    pub fn of(metadata: &Metadata) -> Self {
        let kind = metadata.file_type();
        if kind.is_file() {
            Self::File
        } else if kind.is_dir() {
            Self::Directory
        } else if kind.is_symlink() {
            Self::Symlink
        } else {
            Self::Other
        }
    }
}

/// (pure) `st_mode` as `ls -l` shows it.
fn permissions(mode: u32, link: bool) -> String {
    let kind = match mode & libc::S_IFMT {
        _ if link => 'L',
        libc::S_IFDIR => 'd',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in
        [(6, libc::S_ISUID, 's'), (3, libc::S_ISGID, 's'), (0, libc::S_ISVTX, 't')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::permissions;

    #[test]
    fn permissions_read_as_ls_shows_them() {
        for (mode, link, text) in [
            (0o040_755, false, "drwxr-xr-x"),
            (0o100_640, false, "-rw-r-----"),
            (0o100_644, true, "Lrw-r--r--"),
            (0o104_755, false, "-rwsr-xr-x"),
            (0o102_644, false, "-rw-r-Sr--"),
            (0o041_777, false, "drwxrwxrwt"),
            (0o010_600, false, "prw-------"),
            (0o020_666, false, "crw-rw-rw-"),
        ] {
            assert_eq!(permissions(mode, link), text);
        }
    }
}
