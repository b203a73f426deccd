//! The task that notices capsules whose host is not there any more: all hosts are connected, and it is none of them.

use crate::{capsule::clerk::Clerk, site::Sites};
use hearth_service::shutdown::Shutdown;
use std::{collections::HashSet, time::Duration};
use tokio::time::{self, MissedTickBehavior};

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Runs until shutdown.
pub(crate) async fn run(sites: Sites, clerk: Clerk, shutdown: Shutdown) {
    let mut tick = time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.begun() => return,
            _ = tick.tick() => {}
        }
        // A host that is away may be the one, under an id that is not known yet.
        let hosts: Option<HashSet<String>> =
            sites.all().iter().map(|site| site.host.up().map(|facts| facts.id.clone())).collect();
        if let Some(hosts) = hosts {
            clerk.hosts(hosts).await;
        }
    }
}
