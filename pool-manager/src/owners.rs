//! Who has capsules of one host in this process; news from the host goes to each of them.

use crate::{
    capsule::clerk::Clerk,
    host::{
        held::{Held, Holds},
        observed::{Live, Observed},
    },
    lease::Leases,
    pool::Pools,
};
use hearth_proto::id::CapsuleId;
use std::collections::HashSet;

/// The parts that own capsules. An owner ignores what is not its own.
#[derive(Debug, Clone)]
pub(crate) struct Owners {
    pub(crate) pools: Pools,
    pub(crate) leases: Leases,
    pub(crate) clerk: Clerk,
    pub(crate) holds: Holds,
}

/// Which capsules should be on a host, by owner.
#[derive(Debug)]
pub(crate) struct Expected {
    parked: HashSet<CapsuleId>,
    leased: HashSet<CapsuleId>,
    users: HashSet<CapsuleId>,
}

impl Owners {
    /// Tells the owners what a host says about a capsule.
    pub(crate) async fn observe(&self, observed: &Observed) {
        match &observed.state {
            Live::Stopped { .. } | Live::Failed { .. } => {
                self.pools.gone(observed.id).await;
                self.leases.ended(observed.id).await;
            }
            Live::Running => self.pools.claimed_elsewhere(observed.id).await,
            Live::Starting | Live::Parked | Live::Moving | Live::Paused | Live::Stopping => {}
        }
        self.clerk.observe(observed.clone(), self.holds.clone()).await;
    }

    /// What the owners have right now. To be asked before the host is, so that what comes up in between is not taken
    /// for missing.
    pub(crate) async fn expected(&self, host_id: &str) -> Expected {
        Expected {
            parked: self.pools.parked().await,
            leased: self.leases.ids().await,
            users: self.clerk.active(host_id).await,
        }
    }

    /// Tells the owners which of `expected` the host does not know. Returns how many parked capsules were dropped.
    pub(crate) async fn absent(&self, expected: &Expected, present: &HashSet<CapsuleId>) -> usize {
        let mut parked = 0;
        for id in expected.parked.difference(present) {
            self.pools.gone(*id).await;
            parked += 1;
        }
        for id in expected.leased.difference(present) {
            self.leases.ended(*id).await;
        }
        for id in expected.users.difference(present) {
            self.clerk.absent(*id).await;
        }
        parked
    }

    /// Whether somebody here answers for the capsule. Asked after the host was: a capsule moves from held to user
    /// with its row already known, so it is never seen as nobody's.
    pub(crate) async fn explains(&self, id: CapsuleId) -> bool {
        self.holds.contains(id) || self.clerk.knows(id).await
    }

    /// Puts a parked capsule that nobody explains into the pool of its template. Without room it is destroyed.
    pub(crate) async fn adopt(&self, observed: &Observed) -> bool {
        let Some(held) = self.holds.hold(observed.id) else { return false };
        self.pools.adopt(&observed.template, held).await
    }

    /// Destroys a capsule that nobody explains.
    pub(crate) fn destroy(&self, id: CapsuleId) {
        drop::<Option<Held>>(self.holds.hold(id));
    }
}
