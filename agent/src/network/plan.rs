//! (pure) Addresses and names of the network: 10.203.0.0/16 is ours inside our own namespaces, and nothing of it is
//! seen on the host.
//!
//! ```text
//!  guest 10.203.0.2 ── tap0 10.203.0.1 │ capsule's namespace │ up 10.203.64.0+N ── sN │ router's namespace │
//!                                                               10.203.1.1 (gateway, names) │ up ── host
//! ```

use crate::vmm::machine::GuestNetwork;
use std::net::Ipv4Addr;

/// Slots that can be told apart.
pub const SLOTS_MAX: u32 = 1 << 14;
/// The first slot's address.
const SLOTS: u32 = Ipv4Addr::new(10, 203, 64, 0).to_bits();
/// Prefix of all our inner addresses.
pub const INNER: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 203, 0, 0), 16);
/// The router's address in every slot.
pub const GATEWAY: Ipv4Addr = GuestNetwork::RESOLVER;
/// MAC address of the router's end of every slot.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x48, 0x45, 0, 1, 1];
/// MAC address of every slot's own end.
pub const SLOT_MAC: [u8; 6] = [0x02, 0x48, 0x45, 0, 1, 2];
/// The link that leads out, in a capsule's namespace and in the router's.
pub const UP: &str = "up";
/// Addresses of the links between routers and the host, in pairs of a /30.
const LINKS: u32 = Ipv4Addr::new(198, 18, 0, 0).to_bits();
/// Prefix of one of them.
pub const LINK_PREFIX: u8 = 30;
/// How many there are.
const LINKS_COUNT: u32 = 1 << 15;

/// A slot's address.
pub fn address(slot: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(SLOTS + slot % SLOTS_MAX)
}

/// A slot's link in the router's namespace.
pub fn link(slot: u32) -> String {
    format!("s{slot}")
}

/// The slot of a link in the router's namespace.
pub fn slot_of(link: &str) -> Option<u32> {
    link.strip_prefix('s')?.parse().ok().filter(|slot| *slot < SLOTS_MAX)
}

/// The host's and the router's address of the link between them: the `attempt`-th choice of the data folder whose mark
/// this is.
pub fn uplink(mark: &str, attempt: u32) -> (Ipv4Addr, Ipv4Addr) {
    // FNV-1a; a clash of two data folders is found by looking, not by the hash's strength.
    let hash =
        mark.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let first = LINKS + (hash.wrapping_add(attempt) % LINKS_COUNT) * 4;
    (Ipv4Addr::from_bits(first + 1), Ipv4Addr::from_bits(first + 2))
}

/// Whether an address is of a link between a router and its host.
pub fn is_uplink(address: Ipv4Addr) -> bool {
    (address.to_bits() ^ LINKS) >> 17 == 0
}

/// The host's end of the link to the router, and the name of the host's table: one for each data folder.
pub fn host_name(mark: &str) -> String {
    // An interface's name has at most 15 bytes.
    mark.trim_end_matches('-').chars().take(15).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_addresses_and_links_of_their_own() {
        assert_eq!(address(0), Ipv4Addr::new(10, 203, 64, 0));
        assert_eq!(address(SLOTS_MAX - 1), Ipv4Addr::new(10, 203, 127, 255));
        assert_eq!(slot_of(&link(77)), Some(77));
        for other in ["up", "lo", "s", "sx", "s16384"] {
            assert_eq!(slot_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_uplink_is_a_pair_of_its_own() {
        let (host, router) = uplink("hearth-01234567-", 0);
        assert_eq!(host.to_bits() >> 2, router.to_bits() >> 2);
        assert_ne!(uplink("hearth-01234567-", 1), (host, router));
        for attempt in 0..100 {
            let (host, _) = uplink("m", attempt);
            assert!(is_uplink(host) && matches!(host.octets(), [198, 18 | 19, _, _]), "{host}");
        }
    }

    #[test]
    fn the_hosts_name_fits_an_interface() {
        assert_eq!(host_name("hearth-01234567-"), "hearth-01234567");
    }
}
