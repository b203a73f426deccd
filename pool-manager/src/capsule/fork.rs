//! Running copies of a user's capsule, with rows of their own: all or none.

use super::{
    PausedBy, Record, Times,
    book::Edit,
    lifecycle::{Done, Lifecycle},
    now,
    once::{Key, Once},
    operation::Kind,
    quota::{Amount, Limits, Reservation},
    state::State,
    token::AccessToken,
};
use crate::{
    error::Refused,
    host::held::Held,
    site::Site,
    store::writer::{Job, Writer},
};
use hearth_proto::id::{CapsuleId, TeamId};
use std::sync::{Arc, Mutex, PoisonError};

/// Most copies at once.
pub(crate) const COPIES_MAX: u32 = 64;

/// What a user asks for.
#[derive(Debug, Clone)]
pub(crate) struct ForkOrder {
    pub(crate) team: TeamId,
    pub(crate) source: CapsuleId,
    /// 1 to [`COPIES_MAX`].
    pub(crate) count: u32,
    pub(crate) limits: Limits,
    pub(crate) key: Option<Key>,
}

/// Forks capsules.
#[derive(Debug, Clone)]
pub(crate) struct Forking {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) writer: Writer,
    pub(crate) once: Once,
}

impl Forking {
    /// The copies, running. When the future is dropped, the fork goes on to its end.
    pub(crate) async fn fork(&self, order: ForkOrder) -> Result<Vec<Record>, Refused> {
        let turn = match &order.key {
            Some(key) => {
                let turn = self.once.turn(key).await?;
                if let Some(records) = self.earlier(key).await? {
                    return Ok(records);
                }
                Some(turn)
            }
            None => None,
        };
        let clerk = &self.lifecycle.clerk;
        let Some(source) = clerk.get(order.team, order.source).await? else {
            return Err(self.lifecycle.unknown(order.team, order.source).await);
        };
        let amount = Amount::of(u64::from(order.count), source.vcpus, source.memory_mb);
        let reservation = clerk.reserve(order.team, amount, order.limits).await?;
        // The work's answer is the source's record; the copies come this way.
        let made = Arc::new(Mutex::new(Vec::new()));
        let (this, copies) = (self.clone(), Arc::clone(&made));
        let work = move |site: Site, source: Record| async move {
            let forked = this.through(&site, &source, &order, reservation).await;
            drop(turn);
            match forked {
                Ok(records) => {
                    *copies.lock().unwrap_or_else(PoisonError::into_inner) = records;
                    Done { edit: Edit::default(), event: None, result: Ok(()) }
                }
                Err(refused) => Done::refused(refused),
            }
        };
        self.lifecycle.run(source.team, source.id, Kind::Fork, work).await?;
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *made))
    }

    /// What an earlier request with this key made.
    async fn earlier(&self, key: &Key) -> Result<Option<Vec<Record>>, Refused> {
        let store = &self.lifecycle.store;
        let Some(made) = store.request(key).await.map_err(|error| error.refused())? else {
            return Ok(None);
        };
        key.same(&made.digest)?;
        let mut records = Vec::with_capacity(made.capsules.len());
        for id in made.capsules {
            let known = self.lifecycle.clerk.get(key.team, id).await?;
            records.extend(match known {
                Some(record) => Some(record),
                None => store.get(key.team, id).await.map_err(|error| error.refused())?,
            });
        }
        Ok(Some(records))
    }

    async fn through(
        &self,
        site: &Site,
        source: &Record,
        order: &ForkOrder,
        reservation: Reservation,
    ) -> Result<Vec<Record>, Refused> {
        let held = hold(site, order.count)?;
        let ids: Vec<CapsuleId> = held.iter().map(Held::id).collect();
        let forked = site.host.agent.fork(source.id, &ids).await;
        forked.map_err(|error| error.refused("fork the capsule"))?;
        let records = ids.iter().map(|id| copy(source, *id)).collect::<Result<Vec<_>, _>>()?;
        if let Err(error) = self.lifecycle.store.create(&records, order.key.as_ref()).await {
            tracing::warn!(capsule.id = %source.id, %error, "rows of copies not written, copies destroyed");
            // The insert may have been done although its answer was lost.
            for record in records {
                let reason = "its creation could not be recorded".to_owned();
                let failed = Record { state: State::Failed, reason, ..record };
                self.writer.enqueue(Job::Capsule(Box::new(failed))).await;
            }
            return Err(error.refused());
        }
        // In this order somebody always answers for each copy.
        let mut reservation = Some(reservation);
        for (record, held) in records.iter().zip(held) {
            self.lifecycle.clerk.insert(record.clone(), reservation.take(), Some("forked")).await;
            held.given_away();
        }
        tracing::info!(capsule.id = %source.id, copies = records.len(), "capsule forked");
        Ok(records)
    }
}

fn hold(site: &Site, count: u32) -> Result<Vec<Held>, Refused> {
    let hold = |_| {
        let held = site.holds.hold(CapsuleId::new());
        held.ok_or_else(|| Refused::NoCapacity("pool-manager holds its maximum of capsules".to_owned()))
    };
    (0..count).map(hold).collect()
}

/// A copy has what its source has, but an id, a token and times of its own.
fn copy(source: &Record, id: CapsuleId) -> Result<Record, Refused> {
    let now = now();
    Ok(Record {
        id,
        state: State::Running,
        reason: String::new(),
        paused_by: PausedBy::Host,
        under_way: None,
        token: AccessToken::random().ok_or(Refused::Internal)?,
        times: Times { created: now, started: Some(now), last_active: Some(now), updated: now },
        ..source.clone()
    })
}
