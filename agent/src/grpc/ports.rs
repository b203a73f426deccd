//! Connections to ports inside capsules: the caller's stream, joined to one of the guest's.

use super::service::{AgentService, Replies, until_end};
use crate::error::AgentError;
use futures::{StreamExt, future, stream};
use hearth_proto::{metadata::ENVD_PORT, wire::port::PortBytes};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tonic::{Status, Streaming};

/// How long the first message may take, which names the capsule.
const FIRST_DEADLINE: Duration = Duration::from_secs(10);
/// How long the guest may take to connect to its own port.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

impl AgentService {
    /// Bytes between a caller and a port. They flow as fast as the slower side reads; each direction ends on its own.
    pub(super) async fn port(&self, mut bytes: Streaming<PortBytes>) -> Result<Replies<PortBytes>, Status> {
        let first = match timeout(FIRST_DEADLINE, bytes.message()).await {
            Ok(first) => first?.ok_or_else(|| Status::invalid_argument("the stream is empty"))?,
            Err(_) => return Err(Status::deadline_exceeded("no first message")),
        };
        check(first.port)?;
        let handle = self.capsule(&first.capsule_id)?;
        let activity = handle.activity();
        let guest = handle.guest().await?;
        let place = Arc::clone(&guest.port_places).try_acquire_owned().map_err(|_| {
            let max = crate::guest::PORTS_MAX;
            Status::resource_exhausted(format!("the capsule has {max} connections to its ports already"))
        })?;
        let first = PortBytes { capsule_id: String::new(), ..first };
        // A caller that breaks off also drops the answers, and that closes the connection.
        let rest = bytes.take_while(|message| future::ready(message.is_ok())).filter_map(|message| {
            future::ready(message.ok().map(|PortBytes { data, end, .. }| PortBytes {
                data,
                end,
                ..PortBytes::default()
            }))
        });
        let connected = guest.connect_port(stream::once(future::ready(first)).chain(rest));
        let answers = match timeout(CONNECT_DEADLINE, connected).await {
            Ok(connected) => connected.map_err(AgentError::from)?,
            Err(_) => return Err(Status::deadline_exceeded("the guest did not connect to its port in time")),
        };
        let answers = until_end(&handle, activity, answers).map(move |answer| {
            let _held = &place;
            answer
        });
        Ok(Box::pin(answers))
    }
}

fn check(port: u32) -> Result<(), AgentError> {
    let reason = match u16::try_from(port) {
        Ok(ENVD_PORT) => format!("{port} is the guest daemon's own"),
        Ok(1..) => return Ok(()),
        _ => format!("{port} is not from 1 to 65535"),
    };
    Err(AgentError::Invalid { field: "port", reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ports_of_the_users_are_connected_to() {
        for port in [0, 65_536, u32::MAX, u32::from(ENVD_PORT)] {
            assert!(check(port).unwrap_err().to_string().starts_with("port: "), "{port}");
        }
        for port in [1, 80, 65_535] {
            assert!(check(port).is_ok(), "{port}");
        }
    }
}
