//! What a jailed process may see: a root of its own with a few files, an own network namespace, an own user.
//!
//! The jail exists only inside the process's mount namespace: nothing is mounted on the host, so nothing has to be
//! unmounted when the process ends.

use std::{
    ffi::CString,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

/// One file or folder that is visible in the jail.
#[derive(Debug, Clone)]
pub struct Bind {
    /// Path on the host.
    pub source: PathBuf,
    /// Absolute path in the jail; its parent must be `/`, `/dev` or `/etc`.
    pub target: PathBuf,
    /// May be written (as far as the file's own mode allows).
    pub writable: bool,
}

/// The jail of one process.
#[derive(Debug)]
pub struct Jail {
    /// An empty folder on the host that becomes the root, inside the process's own mount namespace.
    pub mount_point: PathBuf,
    /// User and group id.
    pub uid: u32,
    /// The network namespace.
    pub network: OwnedFd,
    /// What is visible beside `/usr` and the loader's cache.
    pub binds: Vec<Bind>,
}

/// A bind with everything that the child needs, allocated before the fork.
pub(super) struct PreparedBind {
    pub(super) source: CString,
    /// Relative to the new root.
    pub(super) target: CString,
    pub(super) is_folder: bool,
    pub(super) writable: bool,
}

/// A jail whose child side needs no allocation.
pub(super) struct Prepared {
    pub(super) mount_point: CString,
    pub(super) uid: u32,
    pub(super) network: OwnedFd,
    pub(super) binds: Vec<PreparedBind>,
}

impl Jail {
    pub(super) fn prepare(self) -> io::Result<Prepared> {
        let fixed = ["/usr", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"].map(|path| Bind {
            source: PathBuf::from(path),
            target: PathBuf::from(path),
            writable: path.starts_with("/dev"),
        });
        let binds = fixed.into_iter().chain(self.binds).map(|bind| prepare_bind(&bind));
        Ok(Prepared {
            mount_point: c_path(&self.mount_point)?,
            uid: self.uid,
            network: self.network,
            binds: binds.collect::<io::Result<_>>()?,
        })
    }
}

fn prepare_bind(bind: &Bind) -> io::Result<PreparedBind> {
    let target = bind
        .target
        .strip_prefix("/")
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a jail's target is not absolute"))?;
    Ok(PreparedBind {
        source: c_path(&bind.source)?,
        target: c_path(target)?,
        is_folder: bind.source.is_dir(),
        writable: bind.writable,
    })
}

pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path with a zero byte"))
}
