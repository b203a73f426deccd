//! Connections to the capsule's own ports, made where services that listen on localhost only can be reached.

use hearth_proto::metadata::ENVD_PORT;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};

/// Within the capsule a connection is made or refused at once, unless the service does not accept any.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Not a port of the user's.
    #[error("port: {0} is not a port of a service")]
    Bad(u32),
    /// Nobody listens.
    #[error("nothing listens on port {0}")]
    Nobody(u16),
    /// Somebody listens and does not accept.
    #[error("the service on port {0} accepts no connection")]
    Busy(u16),
    /// The kernel says no.
    #[error("port {0} cannot be connected to: {1}")]
    Failed(u16, #[source] io::Error),
}

/// (pure) The port of a service; envd's own is none.
pub fn check(port: u32) -> Result<u16, PortError> {
    u16::try_from(port).ok().filter(|port| *port != 0 && *port != ENVD_PORT).ok_or(PortError::Bad(port))
}

/// Connects to a service: on localhost, else on the address of the capsule. Cancel safe.
pub async fn connect(port: u16, own: Option<IpAddr>) -> Result<TcpStream, PortError> {
    let hosts = [Some(Ipv4Addr::LOCALHOST.into()), Some(Ipv6Addr::LOCALHOST.into()), own];
    for host in hosts.into_iter().flatten() {
        match timeout(CONNECT_DEADLINE, TcpStream::connect((host, port))).await {
            Ok(Ok(stream)) => {
                // Small messages of interactive services go at once.
                stream.set_nodelay(true).map_err(|error| PortError::Failed(port, error))?;
                return Ok(stream);
            }
            Ok(Err(error)) if is_nobody(&error) => {}
            Ok(Err(error)) => return Err(PortError::Failed(port, error)),
            Err(_) => return Err(PortError::Busy(port)),
        }
    }
    Err(PortError::Nobody(port))
}

/// Refused, or there is no such address (IPv6 may be off).
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable, Unsupported,
    };
    matches!(
        error.kind(),
        ConnectionRefused | AddrNotAvailable | NetworkUnreachable | HostUnreachable | Unsupported
    ) || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envds_own_port_is_none_of_a_service() {
        for port in [0, 65_536, u32::from(ENVD_PORT)] {
            assert!(matches!(check(port), Err(PortError::Bad(bad)) if bad == port));
        }
        assert_eq!(check(8080).unwrap(), 8080);
    }
}
