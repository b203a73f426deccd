//! `hearth.pool.v1.PoolManager`: translates, and calls the part that does it.

use super::convert;
use crate::{
    capsule::{create::Creation, destroy::Destruction, lookup::Lookup},
    error::Refused,
    host::Link,
    owners::Owners,
    pool::{TARGET_MAX, take::Taker},
    template::alias,
};
use hearth_proto::wire::pool::{self, pool_manager_server::PoolManager};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Answers requests of the gateway.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) taker: Taker,
    pub(crate) owners: Owners,
    pub(crate) creation: Creation,
    pub(crate) destruction: Destruction,
    pub(crate) lookup: Lookup,
}

#[tonic::async_trait]
impl PoolManager for Service {
    async fn take(&self, request: Request<pool::TakeRequest>) -> Result<Response<pool::TakeReply>, Status> {
        let taken = self.taker.take(convert::want(request.into_inner())).await?;
        Ok(Response::new(convert::taken(&taken)))
    }

    async fn release(
        &self,
        request: Request<pool::ReleaseRequest>,
    ) -> Result<Response<pool::ReleaseReply>, Status> {
        let id = convert::capsule_id(&request.into_inner().capsule_id)?;
        if !self.owners.leases.release(id).await {
            // A one-shot of an earlier pool-manager, whose lease went with it: its user says it is over. What is
            // parked, being destroyed already, or a user's, is not for this call.
            if self.owners.explains(id).await {
                tracing::debug!(capsule.id = %id, "release without a lease ignored");
            } else {
                self.owners.destroy(id);
            }
        }
        Ok(Response::new(pool::ReleaseReply {}))
    }

    async fn create_capsule(
        &self,
        request: Request<pool::CreateCapsuleRequest>,
    ) -> Result<Response<pool::CapsuleRecord>, Status> {
        let order = convert::order(request.into_inner())?;
        let (record, source) = self.creation.create(order).await?;
        let mut reply = convert::record(record);
        source.as_str().clone_into(&mut reply.source);
        Ok(Response::new(reply))
    }

    async fn get_capsule(
        &self,
        request: Request<pool::GetCapsuleRecordRequest>,
    ) -> Result<Response<pool::CapsuleRecord>, Status> {
        let request = request.into_inner();
        let (team, id) = (convert::team_id(&request.team_id)?, convert::capsule_id(&request.capsule_id)?);
        Ok(Response::new(convert::record(self.lookup.get(team, id).await?)))
    }

    async fn list_capsules(
        &self,
        request: Request<pool::ListCapsuleRecordsRequest>,
    ) -> Result<Response<pool::ListCapsuleRecordsReply>, Status> {
        let records = self.lookup.list(convert::team_id(&request.into_inner().team_id)?).await?;
        let capsules = records.into_iter().map(convert::record).collect();
        Ok(Response::new(pool::ListCapsuleRecordsReply { capsules, ..Default::default() }))
    }

    async fn destroy_capsule(
        &self,
        request: Request<pool::DestroyCapsuleRequest>,
    ) -> Result<Response<pool::DestroyCapsuleReply>, Status> {
        let request = request.into_inner();
        let (team, id) = (convert::team_id(&request.team_id)?, convert::capsule_id(&request.capsule_id)?);
        self.destruction.destroy(team, id).await?;
        Ok(Response::new(pool::DestroyCapsuleReply {}))
    }

    async fn locate(
        &self,
        request: Request<pool::LocateRequest>,
    ) -> Result<Response<pool::LocateReply>, Status> {
        let request = request.into_inner();
        let (team, id) = (convert::team_id(&request.team_id)?, convert::capsule_id(&request.capsule_id)?);
        let (host_id, endpoint) = self.lookup.locate(team, id).await?;
        Ok(Response::new(pool::LocateReply { host: Some(convert::host(&host_id, &endpoint)) }))
    }

    async fn list_templates(
        &self,
        _request: Request<pool::ListPoolTemplatesRequest>,
    ) -> Result<Response<pool::ListPoolTemplatesReply>, Status> {
        let catalogue = Arc::clone(&self.taker.catalogue.borrow());
        let templates = catalogue.templates().iter().cloned().map(Into::into).collect();
        Ok(Response::new(pool::ListPoolTemplatesReply { templates }))
    }

    async fn get_status(
        &self,
        _request: Request<pool::GetStatusRequest>,
    ) -> Result<Response<pool::Status>, Status> {
        let unready = self.unready();
        let pools: Vec<_> =
            self.owners.pools.stocks().map(|(template, stock)| convert::stock(template, &stock)).collect();
        let filling = pools
            .iter()
            .find(|pool| pool.parked < pool.target)
            .map(|pool| format!("pool {}: {} of {} parked", pool.template, pool.parked, pool.target));
        let ready = unready.is_none();
        let detail = unready.or(filling).unwrap_or_default();
        Ok(Response::new(pool::Status { ready, detail, pools }))
    }

    async fn set_pool(
        &self,
        request: Request<pool::SetPoolRequest>,
    ) -> Result<Response<pool::PoolState>, Status> {
        let request = request.into_inner();
        let template = alias::canonical(&request.template);
        let Some(pool) = self.owners.pools.of(template) else {
            let kept: Vec<&str> = self.owners.pools.stocks().map(|(template, _)| template).collect();
            let kept = kept.join(", ");
            let refused = format!("no pool is kept for template `{template}`; there are: {kept}");
            return Err(Refused::NotFound(refused).into());
        };
        let target = usize::try_from(request.target).unwrap_or(usize::MAX);
        if target > TARGET_MAX {
            return Err(Refused::Invalid(format!("target: at most {TARGET_MAX}, not {target}")).into());
        }
        let stock = pool.set_target(target).await.map_err(|_gone| Refused::stopping())?;
        tracing::info!(template, target, "pool target set");
        Ok(Response::new(convert::stock(template, &stock)))
    }

    async fn locate_port(
        &self,
        _: Request<pool::LocatePortRequest>,
    ) -> Result<Response<pool::LocateReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn pause_capsule(
        &self,
        _: Request<pool::CapsuleRef>,
    ) -> Result<Response<pool::CapsuleRecord>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn resume_capsule(
        &self,
        _: Request<pool::CapsuleRef>,
    ) -> Result<Response<pool::CapsuleRecord>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn ping_capsule(
        &self,
        _: Request<pool::CapsuleRef>,
    ) -> Result<Response<pool::CapsuleRecord>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn update_capsule(
        &self,
        _: Request<pool::UpdateCapsuleRequest>,
    ) -> Result<Response<pool::CapsuleRecord>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn fork_capsule(
        &self,
        _: Request<pool::ForkCapsuleRequest>,
    ) -> Result<Response<pool::ForkCapsuleReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn rollback_capsule(
        &self,
        _: Request<pool::RollbackCapsuleRequest>,
    ) -> Result<Response<pool::CapsuleRecord>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn create_snapshot(
        &self,
        _: Request<pool::CreateTemplateRequest>,
    ) -> Result<Response<pool::TemplateRecord>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn list_team_templates(
        &self,
        _: Request<pool::ListTeamTemplatesRequest>,
    ) -> Result<Response<pool::ListTeamTemplatesReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn delete_snapshot(
        &self,
        _: Request<pool::DeleteTemplateRequest>,
    ) -> Result<Response<pool::DeleteTemplateReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn get_capsule_usage(
        &self,
        _: Request<pool::CapsuleUsageRequest>,
    ) -> Result<Response<hearth_proto::wire::agent::UsageReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn get_team_stats(
        &self,
        _: Request<pool::TeamStatsRequest>,
    ) -> Result<Response<pool::TeamStats>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn get_team_usage(
        &self,
        _: Request<pool::TeamUsageRequest>,
    ) -> Result<Response<pool::TeamUsage>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn list_hosts(
        &self,
        _: Request<pool::ListHostsRequest>,
    ) -> Result<Response<pool::ListHostsReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    type WatchCapsulesStream = tokio_stream::Pending<Result<pool::CapsuleEvent, Status>>;

    async fn watch_capsules(
        &self,
        _: Request<pool::WatchCapsulesRequest>,
    ) -> Result<Response<Self::WatchCapsulesStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}

impl Service {
    /// Why runs cannot be served now.
    fn unready(&self) -> Option<String> {
        match &*self.taker.host.link.borrow() {
            Link::Away { reason } => Some(format!("no host: {reason}")),
            Link::Up { .. } => self.taker.catalogue.borrow().unready(),
        }
    }
}
