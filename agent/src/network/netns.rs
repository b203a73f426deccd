//! Network namespaces: made and entered on threads of their own, which end right after.

#![expect(unsafe_code, reason = "unshare, setns and the tap ioctl")]

use crate::vmm::machine::GuestNetwork;
use futures::StreamExt;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{LinkUnspec, packet_route::neighbour::NeighbourState};
use std::{
    fs::{self, File, OpenOptions},
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    thread,
};

/// `TUNSETIFF`, linux/if_tun.h.
const TUNSETIFF: u64 = 0x4004_54ca;

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
}

fn system(what: &'static str) -> impl Fn(io::Error) -> NetworkError {
    move |source| NetworkError::System { what, source }
}

/// A capsule's network namespace with its tap.
#[derive(Debug)]
pub struct Netns {
    namespace: OwnedFd,
}

impl Netns {
    /// Makes a namespace with a tap that has the host's address, and returns the tap's descriptor for the VMM.
    /// Blocks for some hundred microseconds.
    pub fn create() -> Result<(Self, OwnedFd), NetworkError> {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| system("unshare")(errno.into()))?;
            let namespace =
                File::open("/proc/thread-self/ns/net").map_err(system("/proc/thread-self/ns/net"))?;
            let tap = open_tap().map_err(system("making the tap"))?;
            // No router solicitations and no duplicate address detection on a link of two.
            fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", GuestNetwork::TAP), "1")
                .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
                .map_err(system("disable_ipv6"))?;
            tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .map_err(system("runtime"))?
                .block_on(configure())?;
            Ok((Self { namespace: namespace.into() }, tap))
        })
        .join()
        .map_err(|_| NetworkError::Thread)?
    }

    /// The namespace of a running process.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        Ok(Self { namespace: File::open(format!("/proc/{pid}/ns/net"))?.into() })
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
        thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| system("setns")(errno.into()))?;
            make().map_err(system("inside the namespace"))
        })
        .join()
        .map_err(|_| NetworkError::Thread)?
    }
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
async fn configure() -> Result<(), NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(system("netlink"))?;
    // Ends with `handle`; nothing outlives this thread's runtime.
    tokio::spawn(connection);
    let fail = |what: &'static str| move |source| NetworkError::Netlink { what, source };
    let tap = handle
        .link()
        .get()
        .match_name(GuestNetwork::TAP.to_owned())
        .execute()
        .next()
        .await
        .ok_or_else(|| system("finding the tap")(io::Error::from(io::ErrorKind::NotFound)))?
        .map_err(fail("finding the tap"))?
        .header
        .index;
    let up = LinkUnspec::new_with_index(tap).address(GuestNetwork::HOST_MAC.to_vec()).up().build();
    handle.link().change(up).execute().await.map_err(fail("bringing the tap up"))?;
    handle
        .address()
        .add(tap, IpAddr::V4(GuestNetwork::HOST), GuestNetwork::PREFIX)
        .execute()
        .await
        .map_err(fail("the tap's address"))?;
    handle
        .neighbours()
        .add(tap, IpAddr::V4(GuestNetwork::GUEST))
        .link_layer_address(&GuestNetwork::GUEST_MAC)
        .state(NeighbourState::Permanent)
        .execute()
        .await
        .map_err(fail("the guest's neighbour entry"))?;
    Ok(())
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
