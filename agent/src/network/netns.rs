//! Network namespaces: made and entered on threads of their own, which end right after.

#![expect(unsafe_code, reason = "the tap's ioctl")]

use super::{
    links::{self, Links, Peer, enter, on_a_thread, speak},
    nft::Netfilter,
    plan,
    policy::Policy,
    ruleset,
    slots::Lease,
};
use crate::vmm::machine::GuestNetwork;
use nix::sched::{CloneFlags, unshare};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

/// `TUNSETIFF`, linux/if_tun.h.
const TUNSETIFF: u64 = 0x4004_54ca;

/// Settings of a capsule's namespace: no IPv6, and a source address that is not the guest's is dropped.
const SETTINGS: [(&str, &str); 8] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/ip_forward", "1"),
];

/// Why a namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("{what}: {source}")]
    Netlink {
        /// Which.
        what: &'static str,
        /// Why.
        source: rtnetlink::Error,
    },
    /// The thread that worked on it panicked.
    #[error("the thread that enters the namespace panicked")]
    Thread,
    /// There is no way out on this host.
    #[error("this host offers no network to capsules: {0}")]
    NoEgress(String),
    /// All slots are taken.
    #[error("all network slots are taken")]
    NoSlot,
}

pub(super) fn system(what: &'static str) -> impl Fn(io::Error) -> NetworkError {
    move |source| NetworkError::System { what, source }
}

/// A capsule's network namespace with its tap. With a slot, a link leads to the router; the slot is given back when this
/// is dropped.
#[derive(Debug)]
pub struct Netns {
    namespace: OwnedFd,
    lease: Option<Lease>,
}

impl Netns {
    /// Makes a namespace with a tap that has the host's address, and returns the tap's descriptor for the VMM. Nothing
    /// leads out of it. Blocks for some hundred microseconds.
    pub fn create() -> Result<(Self, OwnedFd), NetworkError> {
        let (namespace, tap) = make(None)?;
        Ok((Self { namespace, lease: None }, tap))
    }

    /// The same for a slot, with its link to the router where there is one. Blocks for some milliseconds.
    pub(super) fn create_linked(
        lease: Lease,
        router: Option<OwnedFd>,
    ) -> Result<(Self, OwnedFd), NetworkError> {
        let (namespace, tap) = make(router.map(|router| (lease.slot(), router)))?;
        Ok((Self { namespace, lease: Some(lease) }, tap))
    }

    /// The namespace of a running process, without its slot.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        Ok(Self { namespace: File::open(format!("/proc/{pid}/ns/net"))?.into(), lease: None })
    }

    pub(super) fn with_lease(self, lease: Lease) -> Self {
        Self { lease: Some(lease), ..self }
    }

    /// Leaves its slot to the next agent, which takes it over with the VMM.
    pub fn let_go(&self) {
        if let Some(lease) = &self.lease {
            lease.let_go();
        }
    }

    /// Its slot; none when nothing leads out of it.
    pub fn slot(&self) -> Option<u32> {
        self.lease.as_ref().map(Lease::slot)
    }

    /// Lets the guest reach what the policy says and nothing else, from now on, also on connections that are open.
    /// Blocks for some hundred microseconds. After an error the policy before stands.
    pub fn apply(&self, policy: &Policy) -> Result<(), NetworkError> {
        match &self.lease {
            Some(lease) => lease.apply(policy),
            None if policy.has_egress() => Err(NetworkError::NoEgress("the capsule has no slot".to_owned())),
            None => Ok(()),
        }
    }

    /// A copy of the descriptor, for the VMM's jail.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.namespace.try_clone()
    }

    /// Runs `make` inside the namespace, on a thread that ends afterwards: what it makes (a socket) stays there.
    pub fn inside<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let namespace = self.descriptor().map_err(system("descriptor"))?;
        links::inside(namespace, || make().map_err(system("inside the namespace")))
    }

    /// Bytes that the guest sent and received so far, frames with their headers.
    pub fn traffic(&self) -> io::Result<(u64, u64)> {
        let table =
            self.inside(|| fs::read_to_string("/proc/thread-self/net/dev")).map_err(io::Error::other)?;
        traffic(&table, GuestNetwork::TAP).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// (pure) Bytes that a link received and sent, by /proc/net/dev.
fn traffic(table: &str, link: &str) -> Option<(u64, u64)> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(link)?.strip_prefix(':'))?;
    let mut numbers = line.split_ascii_whitespace().map(str::parse);
    // Eight columns about what was received, then what was sent.
    let received = numbers.next()?.ok()?;
    Some((received, numbers.nth(7)?.ok()?))
}

/// The namespace and its tap; for a slot, linked to the router's namespace.
fn make(link: Option<(u32, OwnedFd)>) -> Result<(OwnedFd, OwnedFd), NetworkError> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| system("unshare")(errno.into()))?;
        let namespace = File::open("/proc/thread-self/ns/net").map_err(system("/proc/thread-self/ns/net"))?;
        for (setting, value) in SETTINGS {
            links::set(setting, value)?;
        }
        let tap = open_tap().map_err(system("making the tap"))?;
        speak(configure)?;
        if let Some((slot, router)) = link {
            speak(async |links| lead_out(links, slot, &router).await)?;
            let netfilter = Netfilter::open().map_err(system("a netfilter socket"))?;
            netfilter.apply(&ruleset::slot()).map_err(system("the slot's ruleset"))?;
            enter(&router)?;
            speak(async |links| lead_in(links, slot).await)?;
        }
        Ok((namespace.into(), tap))
    })
}

impl Netns {
    /// TCP connections of the namespace that still tie up their far ends: all but those in TIME_WAIT.
    pub fn connections(&self) -> Result<usize, NetworkError> {
        // proc_pid_net(5): a heading, then one socket a line, its state in hexadecimal in the fourth column.
        const TIME_WAIT: &str = "06";
        let table = self.inside(|| fs::read_to_string("/proc/thread-self/net/tcp"))?;
        let states = table.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(3));
        Ok(states.filter(|state| *state != TIME_WAIT).count())
    }
}

/// A tap that ends with its last descriptor.
fn open_tap() -> io::Result<OwnedFd> {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(GuestNetwork::TAP.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes the live ifreq.
    if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tap.into())
}

/// Address, MAC and the guest's neighbour entry of the tap: the same in every namespace.
async fn configure(links: &Links) -> Result<(), NetworkError> {
    let tap = links.get(GuestNetwork::TAP).await?;
    links.up(tap, Some(GuestNetwork::HOST_MAC)).await?;
    links.address(tap, GuestNetwork::HOST, GuestNetwork::PREFIX).await?;
    links.neighbour(tap, GuestNetwork::GUEST, GuestNetwork::GUEST_MAC).await
}

/// The slot's link to the router, seen from the capsule.
async fn lead_out(links: &Links, slot: u32, router: &OwnedFd) -> Result<(), NetworkError> {
    let name = plan::link(slot);
    let peer = Peer { namespace: router.as_fd(), name: &name, mac: Some(plan::GATEWAY_MAC) };
    let up = links.add_pair(plan::UP, Some(plan::SLOT_MAC), peer).await?;
    links.address(up, plan::address(slot), 32).await?;
    links.neighbour(up, plan::GATEWAY, plan::GATEWAY_MAC).await?;
    links.default_route(up, plan::GATEWAY).await
}

/// The same link, seen from the router.
async fn lead_in(links: &Links, slot: u32) -> Result<(), NetworkError> {
    let name = plan::link(slot);
    let Some(link) = links.find(&name).await? else {
        return Err(system("the slot's link")(io::ErrorKind::NotFound.into()));
    };
    links.up(link, None).await?;
    links.link_route(link, plan::address(slot)).await?;
    links.neighbour(link, plan::address(slot), plan::SLOT_MAC).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_connections_are_counted() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
        let (netns, _tap) = Netns::create().unwrap();
        assert_eq!(netns.connections().unwrap(), 0);
        let connecting = netns
            .inside(|| {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
                let address = SockaddrIn::from(std::net::SocketAddrV4::new(GuestNetwork::GUEST, 9));
                // Nobody answers on this tap.
                assert_eq!(connect(socket.as_raw_fd(), &address), Err(nix::errno::Errno::EINPROGRESS));
                Ok(socket)
            })
            .unwrap();
        assert_eq!(netns.connections().unwrap(), 1);
        drop(connecting);
        assert_eq!(netns.connections().unwrap(), 0);
    }

    #[test]
    fn traffic_is_read_by_link() {
        let table = "Inter-| Receive | Transmit\n  lo: 1 2 0 0 0 0 0 0 3 4\ntap0: 10 2 0 0 0 0 0 0 30 4 0 0 0 0 0 0\n";
        assert_eq!(traffic(table, "tap0"), Some((10, 30)));
        assert_eq!(traffic(table, "tap"), None);
        let (netns, _tap) = Netns::create().unwrap();
        assert_eq!(netns.traffic().unwrap().0, 0);
    }

    #[test]
    fn a_socket_made_inside_sees_only_the_namespace() {
        let (netns, _tap) = Netns::create().unwrap();
        let names = netns
            .inside(|| {
                Ok(nix::net::if_::if_nameindex()?
                    .iter()
                    .map(|interface| interface.name().to_string_lossy().into_owned())
                    .collect::<Vec<_>>())
            })
            .unwrap();
        assert!(names.contains(&GuestNetwork::TAP.to_owned()), "{names:?}");
        let outside = nix::net::if_::if_nameindex().unwrap();
        assert!(outside.iter().all(|interface| interface.name().to_bytes() != GuestNetwork::TAP.as_bytes()));
        // The namespace's interfaces are its own: besides its loopback there is the tap only.
        assert!(names.iter().filter(|name| *name != "lo").count() == 1, "{names:?}");
    }
}
