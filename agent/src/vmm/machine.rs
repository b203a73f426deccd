//! What a machine is made of, in no engine's words.

use serde::{Deserialize, Serialize};
use std::{net::Ipv4Addr, path::PathBuf};

/// Size of a machine. Part of a snapshot's key: a snapshot can only be restored into the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mb: u64,
}

impl Size {
    /// Guest memory in bytes.
    pub fn ram_bytes(self) -> u64 {
        self.memory_mb << 20
    }
}

/// The files a guest boots from, as `images/build` published them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// Uncompressed ELF kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk with envd and the virtio modules.
    pub initramfs: PathBuf,
    /// Read-only root filesystem, shared by all capsules.
    pub rootfs: PathBuf,
    /// Writable layer, copied for each boot.
    pub upper: PathBuf,
    /// A disk that only the machine itself writes, which its user may: where a flattening puts the image.
    pub output: Option<PathBuf>,
}

/// The guest's side of the network: the same in every capsule, so that a restored guest needs no new addresses.
#[derive(Debug, Clone, Copy)]
pub struct GuestNetwork;

impl GuestNetwork {
    /// The guest's address.
    pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 2);
    /// The host's end of the tap.
    pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 1);
    /// Length of the prefix.
    pub const PREFIX: u8 = 30;
    /// The guest's MAC address.
    pub const GUEST_MAC: [u8; 6] = [0x02, 0x48, 0x45, 0, 0, 2];
    /// The tap's MAC address.
    pub const HOST_MAC: [u8; 6] = [0x02, 0x48, 0x45, 0, 0, 1];
    /// Whom the guest asks for names: the router, where it listens for capsules that may reach anything.
    pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 203, 1, 1);
    /// The tap's name.
    pub const TAP: &'static str = "tap0";

    /// A MAC address in its usual spelling.
    pub fn mac_text(mac: [u8; 6]) -> String {
        mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}
