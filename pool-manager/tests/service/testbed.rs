//! One pool-manager with its database and its scripted host.

use crate::{agent::Host, database::Database};
use hearth_pool_manager::{Config, PoolManager, Running};
use hearth_proto::{
    id::TeamId,
    wire::{
        agent::CapsuleState,
        pool::{self, pool_manager_client::PoolManagerClient},
    },
};
use hearth_service::{shutdown::Shutdown, socket};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tonic::{Status, transport::Channel};

pub type Client = PoolManagerClient<Channel>;

/// Far longer than anything here takes, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A team's capsule in a request.
pub fn of(team: TeamId, id: &str) -> pool::CapsuleRef {
    pool::CapsuleRef { team_id: team.to_string(), capsule_id: id.to_owned() }
}

pub struct Testbed {
    pub host: Host,
    pub database: Database,
    pub client: Client,
    pub config: Config,
    shutdown: Shutdown,
    _running: Running,
    folder: TempDir,
}

impl Testbed {
    /// With a full pool of four.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With a full pool, and settings of the test's own.
    pub async fn with(set: impl FnOnce(&mut Config)) -> Self {
        let testbed = Self::start(Database::new().await, set, |_| {}).await;
        testbed.full().await;
        testbed
    }

    /// Started, not waited for. `prepare` writes the host's script before it serves.
    pub async fn start(
        database: Database,
        set: impl FnOnce(&mut Config),
        prepare: impl FnOnce(&Host),
    ) -> Self {
        if std::env::var_os("HEARTH_TEST_LOG").is_some() {
            hearth_service::telemetry::start(Default::default(), "info,hearth_pool_manager=debug");
        }
        let folder = TempDir::with_prefix("hearth-pm-").unwrap();
        let host = Host::new("host-of-the-test", folder.path().join("agent.sock"));
        let mut config = Config::new(folder.path().join("pool.sock"), host.endpoint(), database.url());
        config.restores = 2;
        set(&mut config);
        prepare(&host);
        host.up();
        let shutdown = Shutdown::new();
        let running = PoolManager::start(config.clone(), shutdown.clone()).await.unwrap();
        let client = Client::new(socket::channel(&running.endpoint()).unwrap());
        Self { host, database, client, config, shutdown, _running: running, folder }
    }

    /// Ends the pool-manager and starts another one in its place.
    pub async fn restart(&mut self) {
        assert!(self.shutdown.finish(PATIENCE).await, "a task did not end");
        self.shutdown = Shutdown::new();
        self._running = PoolManager::start(self.config.clone(), self.shutdown.clone()).await.unwrap();
        self.client = Client::new(socket::channel(&self._running.endpoint()).unwrap());
    }

    pub async fn status(&self) -> pool::Status {
        self.client.clone().get_status(pool::GetStatusRequest {}).await.unwrap().into_inner()
    }

    pub async fn stock(&self) -> pool::PoolState {
        self.status().await.pools.remove(0)
    }

    /// Waits until runs can be served, and the pool is full and at rest.
    pub async fn full(&self) {
        self.until("the pool is full", async || {
            let status = self.status().await;
            let stock = &status.pools[0];
            status.ready && stock.parked == stock.target && stock.refilling == 0
        })
        .await;
    }

    /// Waits until a condition holds.
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < end, "waited in vain until {what}; {:?}", self.status().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn take(&self) -> Result<pool::TakeReply, Status> {
        self.take_for(60_000).await
    }

    pub async fn take_for(&self, lease_ms: u64) -> Result<pool::TakeReply, Status> {
        let request = pool::TakeRequest { lease_ms, ..Default::default() };
        self.client.clone().take(request).await.map(tonic::Response::into_inner)
    }

    pub async fn release(&self, capsule_id: &str) {
        let request = pool::ReleaseRequest { capsule_id: capsule_id.to_owned() };
        self.client.clone().release(request).await.unwrap();
    }

    pub async fn create(&self, team: TeamId) -> Result<pool::CapsuleRecord, Status> {
        self.create_with(team, HashMap::new()).await
    }

    pub async fn create_with(
        &self,
        team: TeamId,
        env: HashMap<String, String>,
    ) -> Result<pool::CapsuleRecord, Status> {
        let request = pool::CreateCapsuleRequest {
            team_id: team.to_string(),
            template: "minimal".to_owned(),
            timeout_sec: 300,
            env,
            metadata: [("purpose".to_owned(), "test".to_owned())].into(),
            name: "mine".to_owned(),
            ..Default::default()
        };
        self.client.clone().create_capsule(request).await.map(tonic::Response::into_inner)
    }

    /// A running capsule that is otherwise as the request says.
    pub async fn create_as(
        &self,
        request: pool::CreateCapsuleRequest,
    ) -> Result<pool::CapsuleRecord, Status> {
        self.client.clone().create_capsule(request).await.map(tonic::Response::into_inner)
    }

    pub async fn pause(&self, team: TeamId, id: &str) -> Result<pool::CapsuleRecord, Status> {
        self.client.clone().pause_capsule(of(team, id)).await.map(tonic::Response::into_inner)
    }

    pub async fn resume(&self, team: TeamId, id: &str) -> Result<pool::CapsuleRecord, Status> {
        self.client.clone().resume_capsule(of(team, id)).await.map(tonic::Response::into_inner)
    }

    pub async fn fork(&self, request: pool::ForkCapsuleRequest) -> Result<Vec<pool::CapsuleRecord>, Status> {
        Ok(self.client.clone().fork_capsule(request).await?.into_inner().capsules)
    }

    pub async fn snapshot(&self, team: TeamId, id: &str, name: &str) -> Result<pool::TemplateRecord, Status> {
        let request = pool::CreateTemplateRequest {
            team_id: team.to_string(),
            capsule_id: id.to_owned(),
            name: name.to_owned(),
            ..Default::default()
        };
        self.client.clone().create_snapshot(request).await.map(tonic::Response::into_inner)
    }

    /// A place for one more socket.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub async fn get(&self, team: TeamId, id: &str) -> Result<pool::CapsuleRecord, Status> {
        let request = pool::GetCapsuleRecordRequest { team_id: team.to_string(), capsule_id: id.to_owned() };
        self.client.clone().get_capsule(request).await.map(tonic::Response::into_inner)
    }

    pub async fn list(&self, team: TeamId) -> Result<Vec<String>, Status> {
        let request = pool::ListCapsuleRecordsRequest { team_id: team.to_string(), ..Default::default() };
        let reply = self.client.clone().list_capsules(request).await?.into_inner();
        Ok(reply.capsules.into_iter().map(|capsule| capsule.capsule_id).collect())
    }

    pub async fn destroy(&self, team: TeamId, id: &str) -> Result<(), Status> {
        let request = pool::DestroyCapsuleRequest { team_id: team.to_string(), capsule_id: id.to_owned() };
        self.client.clone().destroy_capsule(request).await.map(|_| ())
    }

    pub async fn locate(&self, team: TeamId, id: &str) -> Result<pool::HostRef, Status> {
        let request = pool::LocateRequest { team_id: team.to_string(), capsule_id: id.to_owned() };
        Ok(self.client.clone().locate(request).await?.into_inner().host.unwrap())
    }

    pub async fn set_pool(&self, target: u32) -> pool::PoolState {
        let request = pool::SetPoolRequest { template: "code".to_owned(), target };
        self.client.clone().set_pool(request).await.unwrap().into_inner()
    }

    /// State and reason in a capsule's row.
    pub async fn row(&self, id: &str) -> Option<(String, String)> {
        let id: hearth_proto::id::CapsuleId = id.parse().unwrap();
        sqlx::query_as("SELECT state, reason FROM capsules WHERE id = $1")
            .bind(id.uuid())
            .fetch_optional(&mut self.database.connect().await)
            .await
            .unwrap()
    }

    /// How many rows there are.
    pub async fn rows(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM capsules")
            .fetch_one(&mut self.database.connect().await)
            .await
            .unwrap()
    }

    /// Capsules on the host in a state.
    pub fn on_host(&self, state: CapsuleState) -> Vec<String> {
        self.host.table().in_state(state)
    }

    /// Like [`Testbed::finish`], when nobody else has the testbed any more.
    pub async fn finish_shared(self: Arc<Self>) {
        Arc::into_inner(self).unwrap().finish().await;
    }

    /// Ends the pool-manager; every task must end.
    pub async fn finish(self) {
        assert!(self.shutdown.finish(PATIENCE).await, "a task did not end");
        self.host.down().await;
    }
}
