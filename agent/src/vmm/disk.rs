//! The capsule's writable layer as the VMM sees it: its size while it runs.

use super::{
    control::{Control, VmmError},
    firecracker::{api::DriveChange, machine},
    guard::Vmm,
};
use serde_json::json;
use std::{fs, fs::OpenOptions, io, os::unix::fs::MetadataExt};

/// Name of the writable layer's drive, in both engines.
const DRIVE: &str = "upper";

impl Vmm {
    /// Bytes that the guest sees of its writable layer.
    pub fn disk_bytes(&self) -> io::Result<u64> {
        Ok(fs::metadata(self.upper())?.size())
    }

    /// Makes the writable layer larger under a running (or standing) guest, which is told. One that has this size stays
    /// as it is; never call it with less.
    pub async fn grow_disk(&self, bytes: u64) -> Result<(), VmmError> {
        match &self.control {
            Control::Qemu(qmp) => {
                // QEMU changes the file itself.
                qmp.call("block_resize", json!({ "device": DRIVE, "size": bytes })).await?;
            }
            Control::Firecracker(firecracker) => {
                let path = self.upper();
                let file = OpenOptions::new().write(true).open(&path);
                file.and_then(|file| file.set_len(bytes))
                    .map_err(|source| VmmError::State { path, source })?;
                // The same file again: it looks at its size anew.
                let change = DriveChange { drive_id: DRIVE, path_on_host: machine::path::UPPER };
                firecracker.api.change_drive(&change).await?;
            }
        }
        Ok(())
    }
}
