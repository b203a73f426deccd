//! `hearth.pool.v1.PoolManager`: translates, and calls the part that does it.

use super::{convert, requests, watch};
use crate::{
    capsule::{
        create::Creation, destroy::Destruction, events::Events, fork::Forking, lifecycle::Lifecycle,
        locate::Locator, lookup::Lookup,
    },
    error::Refused,
    fleet::Fleet,
    host::Link,
    placement,
    pool::{Stock, TARGET_MAX, take::Taker},
    site::Sites,
    snapshot::shelf::Shelf,
    template::alias,
    usage::stats::Statistics,
};
use hearth_proto::wire::{
    agent,
    pool::{self, pool_manager_server::PoolManager},
};
use hearth_service::shutdown::Shutdown;
use std::collections::BTreeMap;
use tonic::{Request, Response, Status};

/// Answers requests of the gateway.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) sites: Sites,
    pub(crate) taker: Taker,
    pub(crate) creation: Creation,
    pub(crate) destruction: Destruction,
    pub(crate) lookup: Lookup,
    pub(crate) locator: Locator,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) forking: Forking,
    pub(crate) shelf: Shelf,
    pub(crate) statistics: Statistics,
    pub(crate) fleet: Fleet,
    pub(crate) events: Events,
    pub(crate) shutdown: Shutdown,
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

#[tonic::async_trait]
impl PoolManager for Service {
    async fn take(&self, request: Request<pool::TakeRequest>) -> Answer<pool::TakeReply> {
        let taken = self.taker.take(requests::want(request.into_inner())).await?;
        answer(convert::taken(&taken))
    }

    async fn release(&self, request: Request<pool::ReleaseRequest>) -> Answer<pool::ReleaseReply> {
        let id = requests::capsule_id(&request.into_inner().capsule_id)?;
        if !self.sites.release(id).await {
            self.release_unleased(id).await;
        }
        answer(pool::ReleaseReply {})
    }

    async fn create_capsule(
        &self,
        request: Request<pool::CreateCapsuleRequest>,
    ) -> Answer<pool::CapsuleRecord> {
        let order = requests::order(request.into_inner())?;
        let (record, source) = self.creation.create(order).await?;
        let source = source.map(|source| source.as_str().to_owned()).unwrap_or_default();
        answer(pool::CapsuleRecord { source, ..convert::record(record) })
    }

    async fn get_capsule(
        &self,
        request: Request<pool::GetCapsuleRecordRequest>,
    ) -> Answer<pool::CapsuleRecord> {
        let request = request.into_inner();
        let (team, id) = requests::team_and_capsule(&request.team_id, &request.capsule_id)?;
        answer(convert::record(self.lookup.get(team, id).await?))
    }

    async fn list_capsules(
        &self,
        request: Request<pool::ListCapsuleRecordsRequest>,
    ) -> Answer<pool::ListCapsuleRecordsReply> {
        let request = request.into_inner();
        let team = requests::team_id(&request.team_id)?;
        let (records, next) = self.lookup.list(team, &requests::filter(request)?).await?;
        answer(pool::ListCapsuleRecordsReply {
            capsules: records.into_iter().map(convert::record).collect(),
            next_cursor: next.map(|cursor| cursor.text()).unwrap_or_default(),
        })
    }

    async fn destroy_capsule(
        &self,
        request: Request<pool::DestroyCapsuleRequest>,
    ) -> Answer<pool::DestroyCapsuleReply> {
        let request = request.into_inner();
        let (team, id) = requests::team_and_capsule(&request.team_id, &request.capsule_id)?;
        self.destruction.destroy(team, id).await?;
        answer(pool::DestroyCapsuleReply {})
    }

    async fn locate(&self, request: Request<pool::LocateRequest>) -> Answer<pool::LocateReply> {
        let request = request.into_inner();
        let (team, id) = requests::team_and_capsule(&request.team_id, &request.capsule_id)?;
        answer(convert::located(&self.locator.locate(team, id).await?))
    }

    async fn locate_port(&self, request: Request<pool::LocatePortRequest>) -> Answer<pool::LocateReply> {
        let request = request.into_inner();
        let id = requests::capsule_id(&request.capsule_id)?;
        let visitor = requests::visitor(&request)?;
        answer(convert::located(&self.locator.locate_port(id, request.port, &visitor).await?))
    }

    async fn pause_capsule(&self, request: Request<pool::CapsuleRef>) -> Answer<pool::CapsuleRecord> {
        let request = request.into_inner();
        let (team, id) = requests::team_and_capsule(&request.team_id, &request.capsule_id)?;
        answer(convert::record(self.lifecycle.pause(team, id).await?))
    }

    async fn resume_capsule(&self, request: Request<pool::CapsuleRef>) -> Answer<pool::CapsuleRecord> {
        let request = request.into_inner();
        let (team, id) = requests::team_and_capsule(&request.team_id, &request.capsule_id)?;
        answer(convert::record(self.lifecycle.resume(team, id).await?))
    }

    async fn ping_capsule(&self, request: Request<pool::CapsuleRef>) -> Answer<pool::CapsuleRecord> {
        let request = request.into_inner();
        let (team, id) = requests::team_and_capsule(&request.team_id, &request.capsule_id)?;
        answer(convert::record(self.lifecycle.ping(team, id).await?))
    }

    async fn update_capsule(
        &self,
        request: Request<pool::UpdateCapsuleRequest>,
    ) -> Answer<pool::CapsuleRecord> {
        let request = request.into_inner();
        let (team, id) = requests::team_and_capsule(&request.team_id, &request.capsule_id)?;
        let record = self.lifecycle.update(team, id, requests::wishes(request)?).await?;
        answer(convert::record(record))
    }

    async fn fork_capsule(
        &self,
        request: Request<pool::ForkCapsuleRequest>,
    ) -> Answer<pool::ForkCapsuleReply> {
        let copies = self.forking.fork(requests::fork(request.into_inner())?).await?;
        answer(pool::ForkCapsuleReply { capsules: copies.into_iter().map(convert::record).collect() })
    }

    async fn rollback_capsule(
        &self,
        request: Request<pool::RollbackCapsuleRequest>,
    ) -> Answer<pool::CapsuleRecord> {
        let request = request.into_inner();
        let (team, id) = requests::team_and_capsule(&request.team_id, &request.capsule_id)?;
        answer(convert::record(self.lifecycle.roll_back(team, id, &request.snapshot).await?))
    }

    async fn create_snapshot(
        &self,
        request: Request<pool::CreateTemplateRequest>,
    ) -> Answer<pool::TemplateRecord> {
        let snapshot = self.shelf.create(requests::snapshot(request.into_inner())?).await?;
        answer(convert::snapshot(snapshot))
    }

    async fn list_team_templates(
        &self,
        request: Request<pool::ListTeamTemplatesRequest>,
    ) -> Answer<pool::ListTeamTemplatesReply> {
        let team = requests::team_id(&request.into_inner().team_id)?;
        let (own, platform) = self.shelf.list(team).await?;
        let platform = platform.into_iter().map(convert::template);
        let mut templates: Vec<_> = own.into_iter().map(convert::snapshot).chain(platform).collect();
        templates.sort_by_key(|template| std::cmp::Reverse(template.created_at_ms));
        answer(pool::ListTeamTemplatesReply { templates })
    }

    async fn delete_snapshot(
        &self,
        request: Request<pool::DeleteTemplateRequest>,
    ) -> Answer<pool::DeleteTemplateReply> {
        let request = request.into_inner();
        self.shelf.delete(requests::team_id(&request.team_id)?, &request.name).await?;
        answer(pool::DeleteTemplateReply {})
    }

    async fn get_capsule_usage(
        &self,
        request: Request<pool::CapsuleUsageRequest>,
    ) -> Answer<agent::UsageReply> {
        let request = request.into_inner();
        let (team, id) = requests::team_and_capsule(&request.team_id, &request.capsule_id)?;
        answer(self.lifecycle.usage(team, id, request.range_sec).await?)
    }

    async fn get_team_stats(&self, request: Request<pool::TeamStatsRequest>) -> Answer<pool::TeamStats> {
        let request = request.into_inner();
        let team = requests::team_id(&request.team_id)?;
        let stats = self.statistics.team(team, request.range_sec, request.bucket_sec).await?;
        answer(convert::stats(stats))
    }

    async fn get_team_usage(&self, request: Request<pool::TeamUsageRequest>) -> Answer<pool::TeamUsage> {
        let request = request.into_inner();
        let team = requests::team_id(&request.team_id)?;
        let days = self.statistics.days(team, request.from_day, request.to_day).await?;
        answer(pool::TeamUsage { days: days.into_iter().map(convert::day).collect() })
    }

    async fn list_hosts(&self, _request: Request<pool::ListHostsRequest>) -> Answer<pool::ListHostsReply> {
        let hosts = self.fleet.list().await?.into_iter().map(convert::host_record).collect();
        answer(pool::ListHostsReply { hosts })
    }

    type WatchCapsulesStream = watch::Events;

    async fn watch_capsules(
        &self,
        request: Request<pool::WatchCapsulesRequest>,
    ) -> Answer<Self::WatchCapsulesStream> {
        let team_id = request.into_inner().team_id;
        let team = if team_id.is_empty() { None } else { Some(requests::team_id(&team_id)?) };
        answer(watch::stream(self.events.listen(), team, &self.shutdown))
    }

    async fn list_templates(
        &self,
        _request: Request<pool::ListPoolTemplatesRequest>,
    ) -> Answer<pool::ListPoolTemplatesReply> {
        let templates = self.sites.templates().into_iter().map(Into::into).collect();
        answer(pool::ListPoolTemplatesReply { templates })
    }

    async fn get_status(&self, _request: Request<pool::GetStatusRequest>) -> Answer<pool::Status> {
        let unready = self.unready();
        let stocks = self.stocks();
        let pools: Vec<_> = stocks.iter().map(|(template, stock)| convert::stock(template, stock)).collect();
        let filling = pools
            .iter()
            .find(|pool| pool.parked < pool.target)
            .map(|pool| format!("pool {}: {} of {} parked", pool.template, pool.parked, pool.target));
        let ready = unready.is_none();
        let detail = unready.or(filling).unwrap_or_default();
        answer(pool::Status { ready, detail, pools })
    }

    async fn set_pool(&self, request: Request<pool::SetPoolRequest>) -> Answer<pool::PoolState> {
        let request = request.into_inner();
        let template = alias::canonical(&request.template);
        let target = usize::try_from(request.target).unwrap_or(usize::MAX);
        let stock = self.set_target(template, target).await?;
        tracing::info!(template, target, "pool target set");
        answer(convert::stock(template, &stock))
    }
}

impl Service {
    /// A one-shot of an earlier pool-manager, whose lease went with it: its user says it is over. What is parked, being
    /// destroyed already, or a user's, is not for this call.
    async fn release_unleased(&self, id: hearth_proto::id::CapsuleId) {
        let held = self.sites.all().iter().any(|site| site.holds.contains(id));
        if held || self.lifecycle.clerk.knows(id).await {
            tracing::debug!(capsule.id = %id, "release without a lease ignored");
            return;
        }
        for site in self.sites.all() {
            // A host that does not know it has nothing to do.
            drop(site.holds.hold(id));
        }
    }

    /// Every pool, over all hosts.
    fn stocks(&self) -> BTreeMap<String, Stock> {
        let mut sum: BTreeMap<String, Stock> = BTreeMap::new();
        for site in self.sites.all() {
            for (template, stock) in site.pools.stocks() {
                sum.entry(template.to_owned()).or_default().add(&stock);
            }
        }
        sum
    }

    /// Spreads a target over the hosts.
    async fn set_target(&self, template: &str, target: usize) -> Result<Stock, Refused> {
        let pools: Vec<_> = self.sites.all().iter().filter_map(|site| site.pools.of(template)).collect();
        if pools.is_empty() {
            let kept = self.stocks().into_keys().collect::<Vec<_>>().join(", ");
            return Err(Refused::NotFound(format!(
                "no pool is kept for template `{template}`; there are: {kept}"
            )));
        }
        if target > TARGET_MAX {
            return Err(Refused::Invalid(format!("target: at most {TARGET_MAX}, not {target}")));
        }
        let mut sum = Stock::default();
        for (index, pool) in pools.iter().enumerate() {
            let share = placement::share(target, pools.len(), index);
            sum.add(&pool.set_target(share).await.map_err(|_gone| Refused::stopping())?);
        }
        Ok(sum)
    }

    /// Why runs cannot be served now: no host can.
    fn unready(&self) -> Option<String> {
        let mut why = None;
        for site in self.sites.all() {
            let unready = match &*site.host.link.borrow() {
                Link::Away { reason, .. } => Some(format!("no host: {reason}")),
                Link::Up { .. } => site.templates().unready(),
            };
            match unready {
                None => return None,
                // What a host that is there says is of more interest.
                Some(text) if why.is_none() || site.host.up().is_some() => why = Some(text),
                Some(_) => {}
            }
        }
        why
    }
}
