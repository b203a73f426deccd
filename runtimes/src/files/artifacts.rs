//! Which files a run made or changed: two listings of its directory, compared.

use hearth_proto::wire::run::Artifact;
use std::{
    collections::BTreeMap,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Entries looked at in one listing; a larger tree is listed in part.
const ENTRIES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 12;
const ARTIFACTS_MAX: usize = 64;
/// Content of a larger file is not sent inline.
const INLINE_BYTES_MAX: u64 = 1 << 20;
const INLINE_TOTAL_MAX: u64 = 8 << 20;

/// Regular files below a directory. Links are not followed; names that begin with a dot and `__pycache__`
/// are skipped.
#[derive(Debug, Default)]
pub(super) struct Listing {
    files: BTreeMap<PathBuf, Stamp>,
    /// Something was left out, for want of room or of the right to read.
    cut: bool,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Listing {
    /// Lists `root`; what cannot be read is left out. `enter` is called with each directory before it is read.
    pub(super) fn of(root: &Path, mut enter: impl FnMut(&Path)) -> Self {
        let mut listing = Self::default();
        let mut folders = vec![(root.to_owned(), 0)];
        let mut left = ENTRIES_MAX;
        while let Some((folder, depth)) = folders.pop() {
            enter(&folder);
            let Ok(entries) = fs::read_dir(&folder) else {
                listing.cut = true;
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                if name.as_encoded_bytes().starts_with(b".") || name == "__pycache__" {
                    continue;
                }
                if left == 0 {
                    listing.cut = true;
                    return listing;
                }
                left -= 1;
                // Of the entry itself, not of what a link points to.
                let Ok(metadata) = entry.metadata() else { continue };
                if metadata.is_dir() && depth < DEPTH_MAX {
                    folders.push((entry.path(), depth + 1));
                } else if metadata.is_dir() {
                    listing.cut = true;
                } else if metadata.is_file() {
                    listing.files.insert(entry.path(), stamp(&metadata));
                }
            }
        }
        listing
    }

    /// Is everything in it that should be?
    pub(super) fn is_whole(&self) -> bool {
        !self.cut
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    Stamp {
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

/// Files below `root` in `after` that differ from `before`, with the content of small ones. Paths are relative to
/// `root`, in order.
pub(super) fn changed(root: &Path, after: &Listing, before: &Listing) -> Vec<Artifact> {
    let mut inline_left = INLINE_TOTAL_MAX;
    let fresh = after.files.iter().filter(|(path, stamp)| before.files.get(*path) != Some(stamp));
    let artifact = |(path, stamp): (&PathBuf, &Stamp)| {
        let inline = stamp.size <= INLINE_BYTES_MAX.min(inline_left);
        let content = inline.then(|| fs::read(path).ok()).flatten();
        // The file may have grown since it was listed.
        let content = content.filter(|content| content.len() as u64 <= INLINE_BYTES_MAX.min(inline_left));
        inline_left -= content.as_ref().map_or(0, |content| content.len() as u64);
        Artifact {
            path: path.strip_prefix(root).unwrap_or(path).display().to_string(),
            size: content.as_ref().map_or(stamp.size, |content| content.len() as u64),
            mime: mime(path).into(),
            content,
        }
    };
    fresh.take(ARTIFACTS_MAX).map(artifact).collect()
}

fn mime(path: &Path) -> &'static str {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "txt" | "log" | "md" | "py" => "text/plain",
        "csv" => "text/csv",
        "html" | "htm" => "text/html",
        "json" => "application/json",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "svg" => "image/svg+xml",
        "webp" => "image/webp",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "parquet" => "application/vnd.apache.parquet",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_and_changed_files_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("same.txt"), "1").unwrap();
        fs::write(at("changed.csv"), "1").unwrap();
        let listing = || Listing::of(folder.path(), |_| {});
        let before = listing();
        fs::write(at("changed.csv"), "22").unwrap();
        fs::create_dir_all(at("sub/__pycache__")).unwrap();
        fs::write(at("sub/new.png"), "x").unwrap();
        fs::write(at("sub/__pycache__/a.pyc"), "x").unwrap();
        fs::write(at(".hidden"), "x").unwrap();
        fs::write(at("large.bin"), vec![0; (1 << 20) + 1]).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        let found = changed(folder.path(), &listing(), &before);
        let brief: Vec<_> = found.iter().map(|a| (a.path.as_str(), a.size, a.content.is_some())).collect();
        assert_eq!(
            brief,
            [("changed.csv", 2, true), ("large.bin", (1 << 20) + 1, false), ("sub/new.png", 1, true)]
        );
        assert_eq!(found[2].mime, "image/png");
    }
}
