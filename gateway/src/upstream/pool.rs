//! pool-manager: small control calls over one channel that reconnects by itself.

use super::{UpstreamError, answer, read, request};
use hearth_proto::{
    id::{CapsuleId, TeamId},
    wire::{
        agent::{Template, UsageReply},
        pool::{self, pool_manager_client::PoolManagerClient, *},
    },
};
use hearth_service::socket::{self, EndpointError, MESSAGE_BYTES_MAX};
use std::{future::Future, time::Duration};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

/// A claim is in memory; a miss is a restore, or a wait for one under load. Under TCG and from a cold disk: seconds.
const TAKE_DEADLINE: Duration = Duration::from_secs(60);
const CREATE_DEADLINE: Duration = Duration::from_secs(60);
const DESTROY_DEADLINE: Duration = Duration::from_secs(30);
const READ_DEADLINE: Duration = Duration::from_secs(5);
const STATUS_DEADLINE: Duration = Duration::from_secs(1);
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);

/// Calls that pause, restore or copy memory: tenths of a second, minutes on a host that swaps.
const LIFECYCLE_DEADLINE: Duration = Duration::from_secs(120);
/// A watch ends with its reader; this only stops what was forgotten.
const WATCH_DEADLINE: Duration = Duration::from_secs(7 * 86_400);

/// A call that changes something: not repeated, for its answer may be lost after it was done.
macro_rules! lifecycle {
    ($(#[$doc:meta])* $name:ident($request:ty) -> $reply:ty) => {
        $(#[$doc])*
        pub(crate) async fn $name(&self, message: $request, request_id: &str) -> Result<$reply, UpstreamError> {
            let mut client = self.client.clone();
            let request = request(message, request_id, LIFECYCLE_DEADLINE);
            answer(client.$name(request), LIFECYCLE_DEADLINE).await
        }
    };
}

/// A call that only reads.
macro_rules! reading {
    ($(#[$doc:meta])* $name:ident($request:ty) -> $reply:ty) => {
        $(#[$doc])*
        pub(crate) async fn $name(&self, message: $request, request_id: &str) -> Result<$reply, UpstreamError> {
            self.read(READ_DEADLINE, message, request_id, |mut client, request| async move {
                client.$name(request).await
            })
            .await
        }
    };
}

/// The client of pool-manager. Clones share the channel.
#[derive(Clone)]
pub(crate) struct PoolManager {
    client: PoolManagerClient<Channel>,
}

impl PoolManager {
    /// A client that connects at the first call.
    pub(crate) fn new(endpoint: &str) -> Result<Self, EndpointError> {
        let client =
            PoolManagerClient::new(socket::channel(endpoint)?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { client })
    }

    /// The client itself, for extensions.
    pub(crate) fn client(&self) -> PoolManagerClient<Channel> {
        self.client.clone()
    }

    /// A capsule for one run. Not repeated: if the answer is lost, the capsule's lease ends it.
    pub(crate) async fn take(&self, take: TakeRequest, request_id: &str) -> Result<TakeReply, UpstreamError> {
        let mut client = self.client.clone();
        answer(client.take(request(take, request_id, TAKE_DEADLINE)), TAKE_DEADLINE).await
    }

    /// Gives a one-shot capsule back. Idempotent, so it is repeated while pool-manager restarts.
    pub(crate) async fn release(&self, capsule: CapsuleId, request_id: &str) -> Result<(), UpstreamError> {
        read(RELEASE_DEADLINE, |deadline| async move {
            let message = ReleaseRequest { capsule_id: capsule.to_string() };
            let mut client = self.client.clone();
            answer(client.release(request(message, request_id, deadline)), deadline).await.map(drop)
        })
        .await
    }

    /// Creates a capsule. Not repeated.
    pub(crate) async fn create(
        &self,
        create: CreateCapsuleRequest,
        request_id: &str,
    ) -> Result<CapsuleRecord, UpstreamError> {
        let mut client = self.client.clone();
        answer(client.create_capsule(request(create, request_id, CREATE_DEADLINE)), CREATE_DEADLINE).await
    }

    /// One capsule of a team.
    pub(crate) async fn get(
        &self,
        team: TeamId,
        capsule: CapsuleId,
        request_id: &str,
    ) -> Result<CapsuleRecord, UpstreamError> {
        read(READ_DEADLINE, |deadline| async move {
            let message =
                GetCapsuleRecordRequest { team_id: team.to_string(), capsule_id: capsule.to_string() };
            let mut client = self.client.clone();
            answer(client.get_capsule(request(message, request_id, deadline)), deadline).await
        })
        .await
    }

    reading!(
        /// A team's capsules.
        list_capsules(ListCapsuleRecordsRequest) -> ListCapsuleRecordsReply
    );

    /// Destroys a capsule. Idempotent, so it is repeated while pool-manager restarts.
    pub(crate) async fn destroy(
        &self,
        team: TeamId,
        capsule: CapsuleId,
        request_id: &str,
    ) -> Result<(), UpstreamError> {
        read(DESTROY_DEADLINE, |deadline| async move {
            let message =
                DestroyCapsuleRequest { team_id: team.to_string(), capsule_id: capsule.to_string() };
            let mut client = self.client.clone();
            answer(client.destroy_capsule(request(message, request_id, deadline)), deadline).await.map(drop)
        })
        .await
    }

    /// The host of a running capsule; a paused one may be resumed for it.
    pub(crate) async fn locate(
        &self,
        team: TeamId,
        capsule: CapsuleId,
        request_id: &str,
    ) -> Result<HostRef, UpstreamError> {
        let message = LocateRequest { team_id: team.to_string(), capsule_id: capsule.to_string() };
        let reply = self
            .read(LIFECYCLE_DEADLINE, message, request_id, |mut client, request| async move {
                client.locate(request).await
            })
            .await?;
        reply.host.ok_or(UpstreamError::Incomplete("the host"))
    }

    /// The host of a capsule, for a connection to one of its ports.
    pub(crate) async fn locate_port(
        &self,
        message: LocatePortRequest,
        request_id: &str,
    ) -> Result<HostRef, UpstreamError> {
        let reply = self
            .read(LIFECYCLE_DEADLINE, message, request_id, |mut client, request| async move {
                client.locate_port(request).await
            })
            .await?;
        reply.host.ok_or(UpstreamError::Incomplete("the host"))
    }

    lifecycle!(
        /// Puts a running capsule on disk.
        pause_capsule(CapsuleRef) -> CapsuleRecord
    );
    lifecycle!(
        /// Brings a paused capsule back.
        resume_capsule(CapsuleRef) -> CapsuleRecord
    );
    lifecycle!(
        /// Counts as use.
        ping_capsule(CapsuleRef) -> CapsuleRecord
    );
    lifecycle!(
        /// Changes a capsule's settings.
        update_capsule(UpdateCapsuleRequest) -> CapsuleRecord
    );
    lifecycle!(
        /// Makes running copies.
        fork_capsule(ForkCapsuleRequest) -> ForkCapsuleReply
    );
    lifecycle!(
        /// Makes a capsule what one of its snapshots was.
        rollback_capsule(RollbackCapsuleRequest) -> CapsuleRecord
    );
    lifecycle!(
        /// Keeps a capsule's state as a template.
        create_snapshot(CreateTemplateRequest) -> TemplateRecord
    );
    lifecycle!(
        /// Deletes a snapshot.
        delete_snapshot(DeleteTemplateRequest) -> DeleteTemplateReply
    );

    reading!(
        /// What a team's capsules can start from.
        list_team_templates(ListTeamTemplatesRequest) -> ListTeamTemplatesReply
    );
    reading!(
        /// What a capsule used.
        get_capsule_usage(CapsuleUsageRequest) -> UsageReply
    );
    reading!(
        /// What a team had running.
        get_team_stats(TeamStatsRequest) -> TeamStats
    );
    reading!(
        /// What a team used by day.
        get_team_usage(TeamUsageRequest) -> TeamUsage
    );
    reading!(
        /// The hosts.
        list_hosts(ListHostsRequest) -> ListHostsReply
    );

    /// Changes of capsules as they happen, of all teams when `team` is none.
    pub(crate) async fn watch(
        &self,
        team: Option<TeamId>,
        request_id: &str,
    ) -> Result<Streaming<CapsuleEvent>, UpstreamError> {
        let team_id = team.map(|team| team.to_string()).unwrap_or_default();
        let message = request(WatchCapsulesRequest { team_id }, request_id, WATCH_DEADLINE);
        let mut client = self.client.clone();
        answer(client.watch_capsules(message), READ_DEADLINE).await
    }

    /// A call that can be repeated while pool-manager restarts.
    async fn read<Q: Clone, T, F>(
        &self,
        deadline: Duration,
        message: Q,
        request_id: &str,
        call: impl Fn(PoolManagerClient<Channel>, Request<Q>) -> F,
    ) -> Result<T, UpstreamError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (message, call) = (&message, &call);
        read(deadline, |deadline| async move {
            let request = request(message.clone(), request_id, deadline);
            answer(call(self.client.clone(), request), deadline).await
        })
        .await
    }

    /// What capsules can start from.
    pub(crate) async fn templates(&self, request_id: &str) -> Result<Vec<Template>, UpstreamError> {
        read(READ_DEADLINE, |deadline| async move {
            let mut client = self.client.clone();
            let message = ListPoolTemplatesRequest {};
            answer(client.list_templates(request(message, request_id, deadline)), deadline).await
        })
        .await
        .map(|reply| reply.templates)
    }

    /// Whether runs can be served now. Asked once: the caller is a probe and will come back.
    pub(crate) async fn status(&self, request_id: &str) -> Result<pool::Status, UpstreamError> {
        let mut client = self.client.clone();
        answer(client.get_status(request(GetStatusRequest {}, request_id, STATUS_DEADLINE)), STATUS_DEADLINE)
            .await
    }
}
