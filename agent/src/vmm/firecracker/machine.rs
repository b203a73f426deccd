//! The machine as Firecracker builds it: devices, kernel command line, paths in the jail.

use super::api::{Api, ApiError, BootSource, Drive, MachineConfig, NetworkInterface};
use crate::vmm::machine::{GuestNetwork, Size};

/// Paths inside the jail.
pub mod path {
    /// Read-only root filesystem.
    pub const ROOTFS: &str = "/rootfs";
    /// The capsule's writable layer.
    pub const UPPER: &str = "/upper";
    /// Kernel (builds only).
    pub const KERNEL: &str = "/kernel";
    /// Initial RAM disk (builds only).
    pub const INITRAMFS: &str = "/initramfs";
    /// Device state: written by a build, read by a restore.
    pub const STATE: &str = "/state";
    /// Where a build's memory is written.
    pub const MEMORY: &str = "/memory";
    /// Device state of a capture.
    pub const SAVED: &str = "/saved";
    /// Pages that the guest has written since its restore, as of the last capture.
    pub const WRITTEN: &str = "/written";
    /// What a flattening writes.
    pub const OUTPUT: &str = "/output";
    /// The pager's socket.
    pub const PAGER: &str = "/pager.sock";
}

/// The guest's kernel command line. Firecracker has no PCI unless asked; its keyboard controller is there for the reset
/// alone, and the kernel need not look for a keyboard.
fn kernel_command_line() -> String {
    format!(
        "console=ttyS0 quiet loglevel=4 panic=-1 reboot=k pci=off i8042.noaux i8042.nomux i8042.dumbkbd \
         mitigations=off init_on_alloc=0 nowatchdog transparent_hugepage=never \
         rcupdate.rcu_normal_after_boot=1 hearth.ip={}/{} hearth.gw={} hearth.dns={}",
        GuestNetwork::GUEST,
        GuestNetwork::PREFIX,
        GuestNetwork::HOST,
        GuestNetwork::RESOLVER,
    )
}

fn config(size: Size) -> MachineConfig {
    MachineConfig {
        vcpu_count: size.vcpus,
        mem_size_mib: size.memory_mb,
        smt: false,
        // A build is saved whole. A restore asks for the log itself; it is not part of a snapshot.
        track_dirty_pages: false,
    }
}

fn source() -> BootSource {
    BootSource {
        kernel_image_path: path::KERNEL,
        initrd_path: path::INITRAMFS,
        boot_args: kernel_command_line(),
    }
}

fn drive(drive_id: &'static str, path_on_host: &'static str, is_read_only: bool) -> Drive {
    Drive {
        drive_id,
        path_on_host,
        is_root_device: false,
        is_read_only,
        // Flushes are not passed on: the layer lives as long as the memory it belongs to; a snapshot syncs it.
        cache_type: "Unsafe",
        // Creating a device with `Async` takes up to 110 ms at a restore.
        io_engine: "Sync",
    }
}

fn drives() -> [Drive; 2] {
    [drive("rootfs", path::ROOTFS, true), drive("upper", path::UPPER, false)]
}

fn network() -> NetworkInterface {
    NetworkInterface {
        iface_id: "net0",
        guest_mac: GuestNetwork::mac_text(GuestNetwork::GUEST_MAC),
        host_dev_name: GuestNetwork::TAP,
    }
}

/// Builds the machine and boots it; `has_output`: with a third disk.
pub async fn boot(api: &Api, size: Size, has_output: bool) -> Result<(), ApiError> {
    api.machine_config(&config(size)).await?;
    api.boot_source(&source()).await?;
    for drive in drives() {
        api.drive(&drive).await?;
    }
    if has_output {
        api.drive(&drive("output", path::OUTPUT, false)).await?;
    }
    api.network_interface(&network()).await?;
    api.entropy().await?;
    api.start().await
}

/// (pure) What is baked into a snapshot of such a machine: part of its key.
pub fn fingerprint(size: Size) -> String {
    format!("{:?} {:?} {:?} {:?} entropy", config(size), source(), drives(), network())
}
