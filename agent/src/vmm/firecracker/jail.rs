//! The folder that becomes a Firecracker's root, and the jailer's arguments (Firecracker's docs/jailer.md).
//!
//! The jailer copies Firecracker into it, makes its devices, and moves into it with an own mount namespace. What else a
//! Firecracker may see is put there by hard link: no mount, and it works also for one that runs already. A file on
//! another filesystem is bound instead, in a mount namespace that only the jailed process has.

use super::api;
use crate::vmm::process::Mount;
use nix::sys::stat::Mode;
use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::chown, net::UnixListener},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

/// Open files that a Firecracker may have; it needs some twenty.
const OPEN_FILES_MAX: u32 = 1024;

/// A jail that is being filled.
#[derive(Debug)]
pub struct Jail {
    base: PathBuf,
    id: String,
    /// Its root on the host.
    pub root: PathBuf,
    /// The root's descriptor.
    pub root_fd: Arc<OwnedFd>,
    mounts: Vec<Mount>,
}

impl Jail {
    /// Makes the folder that the jailer will use below `base` for the program and the id.
    pub fn create(base: &Path, program: &Path, id: &str) -> io::Result<Self> {
        let name = program.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
        let root = base.join(name).join(id).join("root");
        fs::create_dir_all(&root)?;
        let root_fd = open_folder(&root)?;
        Ok(Self { base: base.to_owned(), id: id.to_owned(), root, root_fd, mounts: Vec::new() })
    }

    /// The root of the one jail below `base`, `PROGRAM/ID/root`, and its descriptor.
    pub fn find(base: &Path) -> io::Result<(PathBuf, Arc<OwnedFd>)> {
        for program in fs::read_dir(base)? {
            // Files lie beside it.
            for id in fs::read_dir(program?.path()).into_iter().flatten() {
                let root = id?.path().join("root");
                if root.is_dir() {
                    let root_fd = open_folder(&root)?;
                    return Ok((root, root_fd));
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "there is no jail in its folder"))
    }

    /// Lets the file `source` be seen as `target`, a path in the jail's root folder.
    pub fn admit(&mut self, source: &Path, target: &str) -> io::Result<()> {
        let target = self.root.join(target.trim_start_matches('/'));
        match fs::hard_link(source, &target) {
            Ok(()) => Ok(()),
            // Another filesystem, or one without (more) links.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EXDEV | libc::EMLINK | libc::EPERM)) => {
                File::create_new(&target)?;
                self.mounts.push(Mount { source: source.to_owned(), target });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// A listening socket in the jail's root folder that only `uid` can connect to.
    pub fn listen(&self, target: &str, uid: u32) -> io::Result<UnixListener> {
        let name = target.trim_start_matches('/');
        // By descriptor: the path would be too long for a socket's address.
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", self.root_fd.as_raw_fd()))?;
        chown(self.root.join(name), Some(uid), Some(uid))?;
        Ok(listener)
    }

    /// The jailer's arguments, and the mounts that it must find. It is started in the network namespace: the unnamed
    /// one of a capsule has no path for `--netns`.
    pub fn arguments(self, program: &Path, uid: u32) -> (Vec<OsString>, Vec<Mount>) {
        let user = uid.to_string();
        let files = format!("no-file={OPEN_FILES_MAX}");
        let socket = format!("/{}", api::SOCKET);
        let mut args: Vec<OsString> =
            vec!["--id".into(), self.id.into(), "--exec-file".into(), program.into()];
        args.extend(["--uid", &user, "--gid", &user, "--chroot-base-dir"].map(OsString::from));
        args.push(self.base.into());
        args.extend(["--resource-limit", &files].map(OsString::from));
        args.extend(["--", "--api-sock", &socket].map(OsString::from));
        (args, self.mounts)
    }
}

fn open_folder(path: &Path) -> io::Result<Arc<OwnedFd>> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    Ok(Arc::new(nix::fcntl::open(path, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn files_enter_by_link_and_from_another_filesystem_by_mount() {
        let folder = tempfile::tempdir().unwrap();
        let near = folder.path().join("near");
        fs::write(&near, "near").unwrap();
        let far = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        let mut jail = Jail::create(folder.path(), Path::new("/x/firecracker"), "id").unwrap();
        jail.admit(&near, "/rootfs").unwrap();
        jail.admit(far.path(), "/memory").unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&jail.root.join("rootfs")), inode(&near));
        let root = jail.root.clone();
        assert_eq!(root, folder.path().join("firecracker/id/root"));
        assert_eq!(Jail::find(folder.path()).unwrap().0, root, "a later agent finds it");
        let (args, mounts) = jail.arguments(Path::new("/x/firecracker"), 7);
        assert_eq!(mounts, [Mount { source: far.path().to_owned(), target: root.join("memory") }]);
        assert_eq!(args[..2], ["--id", "id"], "the sweep finds it by its id");
    }

    #[test]
    fn a_socket_in_a_deep_folder_can_be_bound() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(100));
        let jail = Jail::create(&deep, Path::new("firecracker"), "id").unwrap();
        jail.listen("/pager.sock", 0).unwrap();
        assert!(jail.root.join("pager.sock").exists());
    }
}
