//! The mounts of a running capsule.

use nix::mount::{MsFlags, mount};
use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
};

/// One mount.
#[derive(Debug, Clone, Copy)]
pub struct Mount<'a> {
    /// Device or name shown for it.
    pub source: Option<&'a str>,
    /// File system.
    pub kind: &'a str,
    /// Mount point.
    pub target: &'a str,
    /// Flags.
    pub flags: MsFlags,
    /// The file system's own options.
    pub data: &'a str,
}

/// What could not be mounted or made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A mount failed.
    #[error("cannot mount {kind} at {target}")]
    Mount {
        /// File system.
        kind: String,
        /// Mount point.
        target: String,
        /// Why.
        source: nix::Error,
    },
    /// A folder, file or link could not be made.
    #[error("cannot make {path}")]
    Folder {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
}

const NO_SUID_EXEC_DEV: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

impl Mount<'static> {
    /// Processes.
    pub const PROC: Self = Self::kernel("proc", "/proc", NO_SUID_EXEC_DEV, "");
    /// Devices and kernel settings.
    pub const SYS: Self = Self::kernel("sysfs", "/sys", NO_SUID_EXEC_DEV, "");
    /// Device nodes.
    pub const DEV: Self = Self::kernel("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755");
    /// What lives as long as the capsule runs; envd itself too, so programs run from it.
    pub const RUN: Self =
        Self::kernel("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=755");
    const PTS: Self = Self::kernel(
        "devpts",
        "/dev/pts",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        "gid=5,mode=620,ptmxmode=666",
    );
    const SHM: Self =
        Self::kernel("tmpfs", "/dev/shm", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777");
    const CGROUP: Self = Self::kernel("cgroup2", "/sys/fs/cgroup", NO_SUID_EXEC_DEV, "");

    const fn kernel(kind: &'static str, target: &'static str, flags: MsFlags, data: &'static str) -> Self {
        Self { source: Some(kind), kind, target, flags, data }
    }
}

impl Mount<'_> {
    /// Makes the mount point below `root` if need be, and mounts.
    pub fn make(&self, root: &str) -> Result<(), MountError> {
        let target = format!("{root}{}", self.target);
        if fs::metadata(&target).is_err() {
            make_folder(&target, 0o755)?;
        }
        match mount(self.source, target.as_str(), Some(self.kind), self.flags, Some(self.data)) {
            Ok(()) => Ok(()),
            Err(source) => Err(MountError::Mount { kind: self.kind.to_owned(), target, source }),
        }
    }
}

/// Mounts what PID 1 owes its children. /proc, /sys, /dev and /run are there when the initramfs stage came before.
pub fn mount_all() -> Result<(), MountError> {
    let mounted = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for mount in [Mount::PROC, Mount::SYS, Mount::DEV, Mount::RUN] {
        if !is_mount_point(&mounted, mount.target) {
            mount.make("")?;
        }
    }
    for mount in [Mount::PTS, Mount::SHM, Mount::CGROUP] {
        mount.make("")?;
    }
    // What udev would make.
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "fd/0"),
        ("/dev/stdout", "fd/1"),
        ("/dev/stderr", "fd/2"),
    ] {
        link_to(to, link)?;
    }
    // /tmp is on the disk, not in memory: what is written there must not count against the capsule's RAM.
    make_folder("/tmp", 0o1777)?;
    make_folder("/var/tmp", 0o1777)?;
    make_folder("/run/lock", 0o1777)?;
    make_folder("/run/hearth", 0o755)
}

/// Makes a folder and its parents, and sets its mode whatever the umask.
pub fn make_folder(path: &str, mode: u32) -> Result<(), MountError> {
    let made =
        fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
    made.map_err(|source| MountError::Folder { path: path.to_owned(), source })
}

fn link_to(to: &str, link: &str) -> Result<(), MountError> {
    match symlink(to, link) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(MountError::Folder { path: link.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// (pure) Whether something is mounted at `path`, by the contents of /proc/self/mounts.
fn is_mount_point(mounted: &str, path: &str) -> bool {
    mounted.lines().any(|line| line.split(' ').nth(1) == Some(path))
}

#[cfg(test)]
mod tests {
    use super::is_mount_point;

    #[test]
    fn a_mount_point_is_found_by_its_whole_path() {
        let mounted = "overlay / overlay rw 0 0\ntmpfs /run tmpfs rw 0 0\n";
        assert!(is_mount_point(mounted, "/run") && is_mount_point(mounted, "/"));
        assert!(
            !is_mount_point(mounted, "/proc")
                && !is_mount_point(mounted, "/ru")
                && !is_mount_point("", "/run")
        );
    }
}
