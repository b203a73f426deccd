//! A new capsule for a user.

use super::{
    Disk, Labels, PausedBy, Record, Times,
    clerk::Clerk,
    now,
    once::{Key, Once},
    quota::{Amount, Limits, Reservation},
    settings::Settings,
    state::State,
    token::AccessToken,
};
use crate::{
    error::Refused,
    host::{
        client::{Env, Start},
        held::Held,
    },
    pool::take::{Source, Taker},
    site::Site,
    snapshot::Snapshot,
    store::{
        Store,
        writer::{Job, Writer},
    },
    template::{
        Template,
        fit::{self, Size},
    },
};
use hearth_proto::id::TeamId;
use hearth_service::shutdown::Shutdown;
use tokio::sync::oneshot;

/// What a user asks for.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) team: TeamId,
    pub(crate) template: String,
    pub(crate) size: Size,
    /// In MiB; zero: its template's.
    pub(crate) disk_mb: u64,
    pub(crate) env: Env,
    pub(crate) settings: Settings,
    pub(crate) labels: Labels,
    pub(crate) limits: Limits,
    pub(crate) key: Option<Key>,
}

/// What a capsule starts from, and where.
#[derive(Debug)]
struct Origin {
    site: Site,
    host_id: String,
    /// A snapshot of a team as the template it acts as.
    template: Template,
    snapshot: Option<Snapshot>,
}

/// Creates capsules.
#[derive(Debug, Clone)]
pub(crate) struct Creation {
    pub(crate) taker: Taker,
    pub(crate) store: Store,
    pub(crate) clerk: Clerk,
    pub(crate) writer: Writer,
    pub(crate) once: Once,
    pub(crate) shutdown: Shutdown,
}

impl Creation {
    /// Creates a capsule and its row. When the future is dropped, the creation goes on to its end: afterwards there are
    /// a capsule and its row, or neither. Where it came from is told by the first answer only.
    pub(crate) async fn create(&self, order: Order) -> Result<(Record, Option<Source>), Refused> {
        let turn = match &order.key {
            Some(key) => {
                let turn = self.once.turn(key).await?;
                if let Some(record) = self.earlier(key).await? {
                    return Ok((record, None));
                }
                Some(turn)
            }
            None => None,
        };
        let origin = self.origin(&order).await?;
        let amount = Amount::of(1, origin.template.vcpus, origin.template.memory_mb);
        let reservation = self.clerk.reserve(order.team, amount, order.limits).await?;
        let (reply, answer) = oneshot::channel();
        let this = self.clone();
        self.shutdown.tasks().spawn(async move {
            let created = this.through(order, origin, reservation).await;
            drop(turn);
            // The caller may have left; the capsule has its row, so its user can find it.
            let _left = reply.send(created.map(|(record, source)| (record, Some(source))));
        });
        answer.await.unwrap_or(Err(Refused::Internal))
    }

    /// What an earlier request with this key made.
    async fn earlier(&self, key: &Key) -> Result<Option<Record>, Refused> {
        let Some(made) = self.store.request(key).await.map_err(|error| error.refused())? else {
            return Ok(None);
        };
        key.same(&made.digest)?;
        let Some(id) = made.capsules.first() else { return Ok(None) };
        match self.clerk.get(key.team, *id).await? {
            Some(record) => Ok(Some(record)),
            None => self.store.get(key.team, *id).await.map_err(|error| error.refused()),
        }
    }

    /// A team's own snapshot comes before a template of that name.
    async fn origin(&self, order: &Order) -> Result<Origin, Refused> {
        let own = if order.template.is_empty() {
            None
        } else {
            let found = self.store.snapshot(order.team, &order.template).await;
            found.map_err(|error| error.refused())?
        };
        let Some(snapshot) = own else {
            let (site, template) = self.taker.place(&order.template, order.size).await?;
            let host_id = site.up()?.id.clone();
            return Ok(Origin { site: site.clone(), host_id, template, snapshot: None });
        };
        let template = snapshot.as_template();
        fit::fit(&[&template], order.size).map_err(|unfit| Refused::Invalid(unfit.to_string()))?;
        let site = self.taker.sites.of(&snapshot.host_id)?;
        let host_id = site.up()?.id.clone();
        Ok(Origin { site: site.clone(), host_id, template, snapshot: Some(snapshot) })
    }

    async fn through(
        &self,
        mut order: Order,
        origin: Origin,
        reservation: Reservation,
    ) -> Result<(Record, Source), Refused> {
        let token = AccessToken::random().ok_or(Refused::Internal)?;
        let start = Start {
            env: std::mem::take(&mut order.env),
            disk_mb: order.disk_mb,
            network: order.settings.network.clone(),
            timeouts: order.settings.timeouts,
            size: Size::default(),
        };
        let (held, source) = match &origin.snapshot {
            Some(snapshot) => {
                let restored = origin.site.demand.restore(&snapshot.id.to_string(), start).await?;
                (restored, Source::Restored)
            }
            None => self.taker.running(&origin.site, &origin.template, start).await?,
        };
        let key = order.key.take();
        let record = record(order, &origin, token, &held);
        if let Err(error) = self.store.create(std::slice::from_ref(&record), key.as_ref()).await {
            tracing::warn!(capsule.id = %record.id, %error, "row not written, capsule destroyed");
            // The insert may have been done although its answer was lost.
            let reason = "its creation could not be recorded".to_owned();
            let failed = Record { state: State::Failed, reason, ..record };
            self.writer.enqueue(Job::Capsule(Box::new(failed))).await;
            drop(held);
            return Err(error.refused());
        }
        // In this order somebody always answers for the capsule.
        self.clerk.insert(record.clone(), Some(reservation), Some("created")).await;
        held.given_away();
        let (template, source_name) = (record.template.as_str(), source.as_str());
        tracing::info!(capsule.id = %record.id, template, source = source_name, "capsule created");
        Ok((record, source))
    }
}

fn record(order: Order, origin: &Origin, token: AccessToken, held: &Held) -> Record {
    let now = now();
    Record {
        id: held.id(),
        team: order.team,
        template: origin.template.name.clone(),
        host_id: origin.host_id.clone(),
        state: State::Running,
        reason: String::new(),
        paused_by: PausedBy::Host,
        under_way: None,
        vcpus: origin.template.vcpus,
        memory_mb: origin.template.memory_mb,
        disk: Disk { size_mb: order.disk_mb, used_mb: 0 },
        settings: order.settings,
        token,
        labels: order.labels,
        times: Times { created: now, started: Some(now), last_active: Some(now), updated: now },
    }
}
