//! (pure) Paths as callers name them, made absolute.

use super::FileError;
use crate::user::{Names, User};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// PATH_MAX less its NUL.
const BYTES_MAX: usize = 4095;

/// The absolute path that `path`, given as `field`, means for `user`: `~`, `~/x` and `x` begin at the home, `~name/x` at
/// another user's.
pub fn resolve(field: &'static str, path: &[u8], user: &User, names: &Names) -> Result<PathBuf, FileError> {
    let problem = if path.is_empty() {
        "is empty"
    } else if BYTES_MAX < path.len() {
        "is longer than 4095 bytes"
    } else if path.contains(&0) {
        "has a NUL byte"
    } else {
        return locate(Path::new(OsStr::from_bytes(path)), user, names);
    };
    Err(FileError::Invalid { field, problem: problem.to_owned() })
}

fn locate(path: &Path, user: &User, names: &Names) -> Result<PathBuf, FileError> {
    let bytes = path.as_os_str().as_bytes();
    let located = match bytes.strip_prefix(b"~") {
        _ if bytes[0] == b'/' => path.to_owned(),
        None => Path::new(&user.home).join(path),
        Some(rest) => {
            let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let (name, below) = rest.split_at(end);
            let home = if name.is_empty() {
                user.home.clone()
            } else {
                let found = std::str::from_utf8(name).ok().and_then(|name| names.user(name));
                let problem = || "there is no such user".to_owned();
                found.ok_or_else(|| FileError::Missing { path: path.to_owned(), problem: problem() })?.home
            };
            let start = below.iter().position(|byte| *byte != b'/').unwrap_or(below.len());
            Path::new(&home).join(OsStr::from_bytes(&below[start..]))
        }
    };
    // Without doubled slashes and `.`; `..` stays, since what is before it may be a link.
    Ok(located.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(path: &[u8]) -> Result<PathBuf, FileError> {
        let passwd = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
        let names = Names::of(passwd, "");
        resolve("path", path, &names.user("user").unwrap(), &names)
    }

    #[test]
    fn paths_begin_at_a_home_unless_absolute() {
        for (path, absolute) in [
            ("/", "/"),
            ("//a//./b/", "/a/b"),
            ("/a/../b", "/a/../b"),
            ("~", "/home/user"),
            ("~/", "/home/user"),
            ("~//x", "/home/user/x"),
            ("x/y", "/home/user/x/y"),
            (".", "/home/user"),
            ("~root", "/root"),
            ("~root/x", "/root/x"),
            ("a~b", "/home/user/a~b"),
        ] {
            assert_eq!(resolved(path.as_bytes()).unwrap(), Path::new(absolute), "{path:?}");
        }
        assert_eq!(resolved(b"/\xff").unwrap().as_os_str().as_bytes(), b"/\xff");
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for path in [&b""[..], b"a\0b", &[b'a'; 4096]] {
            assert!(matches!(resolved(path), Err(FileError::Invalid { field: "path", .. })), "{path:?}");
        }
        assert!(matches!(resolved(b"~nobody/x"), Err(FileError::Missing { .. })));
        assert!(resolved(&[b'a'; 4095]).is_ok());
    }
}
