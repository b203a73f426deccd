//! A tap that a VMM opens by name: it outlasts our descriptor, and ends with its network namespace.

#![expect(unsafe_code, reason = "the tap's ioctls")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// `TUNSETPERSIST`, linux/if_tun.h.
const TUNSETPERSIST: u64 = 0x4004_54cb;
/// `TUNSETOWNER`, linux/if_tun.h.
const TUNSETOWNER: u64 = 0x4004_54cc;

/// Gives the tap to a user, who may open it by its name, one at a time.
pub fn give(tap: OwnedFd, uid: u32) -> io::Result<()> {
    for (request, argument) in [(TUNSETOWNER, u64::from(uid)), (TUNSETPERSIST, 1)] {
        // SAFETY: both requests take an integer; the descriptor is alive.
        if unsafe { libc::ioctl(tap.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{network::netns::Netns, vmm::machine::GuestNetwork};

    #[test]
    fn a_tap_that_was_given_stays_while_its_namespace_does() {
        let (netns, tap) = Netns::create().unwrap();
        give(tap, 520_000).unwrap();
        let names = netns
            .inside(|| {
                Ok(nix::net::if_::if_nameindex()?
                    .iter()
                    .map(|interface| interface.name().to_string_lossy().into_owned())
                    .collect::<Vec<_>>())
            })
            .unwrap();
        assert!(names.contains(&GuestNetwork::TAP.to_owned()), "{names:?}");
    }
}
