//! A small file system, for tests of what happens when it is full.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A small tmpfs, unmounted when dropped.
pub struct Small(PathBuf);

impl Small {
    pub fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        mount(Some("small"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(at.to_owned())
    }

    pub fn resize(&self, size: &str) {
        let options = format!("size={size}");
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT, Some(options.as_str())).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A test that fails says why itself.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
