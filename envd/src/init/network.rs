//! Brings the network up: loopback, eth0 with the address of the command line, resolver, host name.

use crate::{cmdline::Network, snapshot::identity::with_own_name};
use futures::TryStreamExt as _;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::{
    fmt::Write as _,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

/// The one interface a capsule has.
const INTERFACE: &str = "eth0";
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel has no such interface.
    #[error("there is no interface {0}")]
    NoInterface(&'static str),
    /// The kernel refused a change.
    #[error("the network: cannot {0}")]
    Netlink(&'static str, #[source] rtnetlink::Error),
    /// A file, a socket or the host name cannot be used.
    #[error("the network: cannot {0}")]
    Io(&'static str, #[source] io::Error),
}

/// Sets the host name and makes it resolve.
pub fn set_hostname(hostname: &str) -> Result<(), NetworkError> {
    nix::unistd::sethostname(hostname)
        .map_err(|errno| NetworkError::Io("set the host name", errno.into()))?;
    let hosts = if Path::new("/etc/hosts").exists() {
        fs::read_to_string("/etc/hosts")
    } else {
        Ok(HOSTS.to_owned())
    };
    hosts
        .and_then(|hosts| fs::write("/etc/hosts", with_own_name(&hosts, hostname)))
        .map_err(|error| NetworkError::Io("write /etc/hosts", error))
}

/// Applies the network. Netlink is spoken on a runtime of its own that ends with this call.
pub fn bring_up(network: &Network) -> Result<(), NetworkError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| NetworkError::Io("start a runtime", error))?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| NetworkError::Io("open a netlink socket", error))?;
        let connection = tokio::spawn(connection);
        let applied = apply(&handle, network).await;
        connection.abort();
        applied
    })?;
    write_resolvers(&network.resolvers).map_err(|error| NetworkError::Io("write /etc/resolv.conf", error))
}

async fn apply(handle: &Handle, network: &Network) -> Result<(), NetworkError> {
    let loopback = index(handle, "lo").await?;
    up(handle, loopback).await?;
    let interface = index(handle, INTERFACE).await?;
    silence_ipv6().map_err(|error| NetworkError::Io("switch IPv6 off", error))?;
    handle
        .address()
        .add(interface, IpAddr::V4(network.address), network.prefix)
        .execute()
        .await
        .map_err(|error| NetworkError::Netlink("add the address", error))?;
    up(handle, interface).await?;
    let Some(gateway) = network.gateway else { return Ok(()) };
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(interface).build();
    handle
        .route()
        .add(route)
        .execute()
        .await
        .map_err(|error| NetworkError::Netlink("add the default route", error))
}

/// Nobody answers IPv6 beside a capsule, and an interface that looks for neighbours and routers wakes an idle one.
fn silence_ipv6() -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6"), "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn index(handle: &Handle, name: &'static str) -> Result<u32, NetworkError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link =
        links.try_next().await.map_err(|error| NetworkError::Netlink("look for an interface", error))?;
    Ok(link.ok_or(NetworkError::NoInterface(name))?.header.index)
}

async fn up(handle: &Handle, index: u32) -> Result<(), NetworkError> {
    let change = LinkUnspec::new_with_index(index).up().build();
    handle
        .link()
        .set(change)
        .execute()
        .await
        .map_err(|error| NetworkError::Netlink("bring an interface up", error))
}

/// Replaces the file, which may be a link to a resolver that a capsule does not run.
fn write_resolvers(resolvers: &[Ipv4Addr]) -> io::Result<()> {
    let path = Path::new("/etc/resolv.conf");
    if path.is_symlink() {
        fs::remove_file(path)?;
    }
    fs::write(path, resolv_conf(resolvers))
}

/// (pure) resolv.conf(5).
fn resolv_conf(resolvers: &[Ipv4Addr]) -> String {
    resolvers.iter().fold(String::new(), |mut text, address| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "nameserver {address}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_listed_in_order() {
        let resolvers = [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];
        assert_eq!(resolv_conf(&resolvers), "nameserver 1.1.1.1\nnameserver 8.8.8.8\n");
        assert_eq!(resolv_conf(&[]), "");
    }
}
