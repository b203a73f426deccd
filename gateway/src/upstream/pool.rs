//! pool-manager: small control calls over one channel that reconnects by itself.

use super::{UpstreamError, answer, read, request};
use hearth_proto::{
    id::{CapsuleId, TeamId},
    wire::{
        agent::Template,
        pool::{
            CapsuleRecord, CreateCapsuleRequest, DestroyCapsuleRequest, GetCapsuleRecordRequest,
            GetStatusRequest, HostRef, ListCapsuleRecordsRequest, ListPoolTemplatesRequest, LocateRequest,
            ReleaseRequest, Status, TakeReply, TakeRequest, pool_manager_client::PoolManagerClient,
        },
    },
};
use hearth_service::socket::{self, EndpointError, MESSAGE_BYTES_MAX};
use std::time::Duration;
use tonic::transport::Channel;

/// A claim is in memory; a miss is a restore, or a wait for one under load. Under TCG and from a cold disk: seconds.
const TAKE_DEADLINE: Duration = Duration::from_secs(60);
const CREATE_DEADLINE: Duration = Duration::from_secs(60);
const DESTROY_DEADLINE: Duration = Duration::from_secs(30);
const READ_DEADLINE: Duration = Duration::from_secs(5);
const STATUS_DEADLINE: Duration = Duration::from_secs(1);
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);

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

    /// All capsules of a team, in any state.
    pub(crate) async fn list(
        &self,
        team: TeamId,
        request_id: &str,
    ) -> Result<Vec<CapsuleRecord>, UpstreamError> {
        read(READ_DEADLINE, |deadline| async move {
            let message = ListCapsuleRecordsRequest { team_id: team.to_string(), ..Default::default() };
            let mut client = self.client.clone();
            answer(client.list_capsules(request(message, request_id, deadline)), deadline).await
        })
        .await
        .map(|reply| reply.capsules)
    }

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

    /// The host of a running capsule.
    pub(crate) async fn locate(
        &self,
        team: TeamId,
        capsule: CapsuleId,
        request_id: &str,
    ) -> Result<HostRef, UpstreamError> {
        let reply = read(READ_DEADLINE, |deadline| async move {
            let message = LocateRequest { team_id: team.to_string(), capsule_id: capsule.to_string() };
            let mut client = self.client.clone();
            answer(client.locate(request(message, request_id, deadline)), deadline).await
        })
        .await?;
        reply.host.ok_or(UpstreamError::Incomplete("the host"))
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
    pub(crate) async fn status(&self, request_id: &str) -> Result<Status, UpstreamError> {
        let mut client = self.client.clone();
        answer(client.get_status(request(GetStatusRequest {}, request_id, STATUS_DEADLINE)), STATUS_DEADLINE)
            .await
    }
}
