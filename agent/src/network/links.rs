//! Links, addresses and routes by netlink, in the calling thread's network namespace.

use super::netns::{NetworkError, system};
use futures::StreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        link::{InfoData, InfoVeth, LinkAttribute},
        neighbour::NeighbourState,
        route::{RouteScope, RouteType},
    },
};
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

fn refused(what: &'static str) -> impl Fn(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { what, source }
}

/// Runs `work` on a thread of its own, which may change its namespace: it ends afterwards.
pub fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    thread::spawn(work).join().map_err(|_| NetworkError::Thread)?
}

/// Moves the calling thread into a network namespace.
pub fn enter(namespace: impl AsFd) -> Result<(), NetworkError> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| system("setns")(errno.into()))
}

/// Runs `work` inside a namespace, on a thread that ends afterwards.
pub fn inside<T: Send + 'static>(
    namespace: OwnedFd,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    on_a_thread(move || {
        enter(&namespace)?;
        work()
    })
}

/// Speaks netlink in the calling thread's namespace.
pub fn speak<T>(talk: impl AsyncFnOnce(&Links) -> Result<T, NetworkError>) -> Result<T, NetworkError> {
    tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(system("runtime"))?.block_on(
        async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(system("netlink"))?;
            // Ends with `handle`; nothing outlives this thread's runtime.
            tokio::spawn(connection);
            talk(&Links(handle)).await
        },
    )
}

/// Writes a setting of the calling thread's network namespace. One that the kernel does not have is none to change.
pub fn set(setting: &str, value: &str) -> Result<(), NetworkError> {
    match fs::write(Path::new("/proc/sys/net").join(setting), value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system("a setting of the network")(
            io::Error::new(error.kind(), format!("{setting}: {error}")),
        )),
        _ => Ok(()),
    }
}

/// The other end of a pair of links.
pub struct Peer<'a> {
    /// Its namespace.
    pub namespace: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a str,
    /// Its MAC address, when that matters.
    pub mac: Option<[u8; 6]>,
}

/// One conversation with the kernel.
pub struct Links(Handle);

impl Links {
    /// The number of a link; none when there is no such link.
    pub async fn find(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        match self.0.link().get().match_name(name.to_owned()).execute().next().await {
            Some(Ok(link)) => Ok(Some(link.header.index)),
            None => Ok(None),
            Some(Err(rtnetlink::Error::NetlinkError(error))) if error.raw_code() == -libc::ENODEV => Ok(None),
            Some(Err(error)) => Err(refused("looking for a link")(error)),
        }
    }

    /// The number of a link that must be there.
    pub async fn get(&self, name: &'static str) -> Result<u32, NetworkError> {
        self.find(name).await?.ok_or_else(|| system(name)(io::ErrorKind::NotFound.into()))
    }

    /// Names of all links.
    pub async fn names(&self) -> Result<Vec<String>, NetworkError> {
        let mut links = self.0.link().get().execute();
        let mut names = Vec::new();
        while let Some(link) = links.next().await {
            let link = link.map_err(refused("listing links"))?;
            names.extend(link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            }));
        }
        Ok(names)
    }

    /// Makes a pair of links, the near end of which is up; returns its number. The kernel brings up no far end that has
    /// no near one yet.
    pub async fn add_pair(
        &self,
        name: &'static str,
        mac: Option<[u8; 6]>,
        peer: Peer<'_>,
    ) -> Result<u32, NetworkError> {
        let with_mac = |builder: LinkMessageBuilder<LinkUnspec>| match peer.mac {
            Some(mac) => builder.address(mac.to_vec()),
            None => builder,
        };
        let far = with_mac(LinkMessageBuilder::<LinkUnspec>::new().name(peer.name))
            .setns_by_fd(peer.namespace.as_raw_fd())
            .build();
        let mut near = LinkVeth::new(name, peer.name).set_info_data(InfoData::Veth(InfoVeth::Peer(far))).up();
        if let Some(mac) = mac {
            near = near.address(mac.to_vec());
        }
        self.0.link().add(near.build()).execute().await.map_err(refused("making a pair of links"))?;
        self.get(name).await
    }

    /// Deletes a link, if it is there.
    pub async fn delete(&self, name: &str) -> Result<(), NetworkError> {
        let Some(index) = self.find(name).await? else { return Ok(()) };
        match self.0.link().del(index).execute().await {
            // It went by itself, with the namespace of its other end.
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(()),
            other => other.map_err(refused("deleting a link")),
        }
    }

    /// Brings a link up.
    pub async fn up(&self, index: u32, mac: Option<[u8; 6]>) -> Result<(), NetworkError> {
        let mut change = LinkUnspec::new_with_index(index).up();
        if let Some(mac) = mac {
            change = change.address(mac.to_vec());
        }
        self.0.link().change(change.build()).execute().await.map_err(refused("bringing a link up"))
    }

    /// Gives a link an address.
    pub async fn address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), NetworkError> {
        let add = self.0.address().add(index, IpAddr::V4(address), prefix);
        add.execute().await.map_err(refused("adding an address"))
    }

    /// All IPv4 addresses.
    pub async fn addresses(&self) -> Result<Vec<Ipv4Addr>, NetworkError> {
        use rtnetlink::packet_route::address::AddressAttribute;
        let mut messages = self.0.address().get().execute();
        let mut addresses = Vec::new();
        while let Some(message) = messages.next().await {
            let message = message.map_err(refused("listing addresses"))?;
            addresses.extend(message.attributes.into_iter().filter_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V4(address)) => Some(address),
                _ => None,
            }));
        }
        Ok(addresses)
    }

    /// Tells a neighbour's MAC address, for good.
    pub async fn neighbour(&self, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Result<(), NetworkError> {
        let neighbours = self.0.neighbours();
        let add = neighbours.add(index, IpAddr::V4(address)).link_layer_address(&mac);
        add.state(NeighbourState::Permanent).execute().await.map_err(refused("adding a neighbour"))
    }

    /// Sends what has no other route to a neighbour behind a link.
    pub async fn default_route(&self, index: u32, gateway: Ipv4Addr) -> Result<(), NetworkError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).onlink();
        self.0.route().add(route.build()).execute().await.map_err(refused("adding the default route"))
    }

    /// Sends one address to a link.
    pub async fn link_route(&self, index: u32, address: Ipv4Addr) -> Result<(), NetworkError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(index)
            .scope(RouteScope::Link);
        self.0.route().add(route.build()).execute().await.map_err(refused("adding a route"))
    }

    /// Sends a range nowhere.
    pub async fn unreachable(&self, (first, prefix): (Ipv4Addr, u8)) -> Result<(), NetworkError> {
        let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(first, prefix)
            .kind(RouteType::Unreachable);
        route.get_mut().header.address_family = AddressFamily::Inet;
        self.0.route().add(route.build()).execute().await.map_err(refused("adding a route"))
    }
}
