//! An agent that follows a script: its host has no VMM, only a table of capsules.

mod lifecycle;

use hearth_proto::wire::{
    agent::{
        self, Capsule, CapsuleState, TemplateProgress,
        agent_server::{Agent, AgentServer},
        template_progress::Progress,
    },
    port::PortBytes,
};
use hearth_service::socket;
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{broadcast, watch};
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The scripted host. Clones share it.
#[derive(Clone)]
pub struct Host {
    shared: Arc<Shared>,
}

struct Shared {
    id: String,
    path: PathBuf,
    table: Mutex<Table>,
    news: broadcast::Sender<Capsule>,
    /// Restores wait while this is true.
    held: watch::Sender<bool>,
    /// Changes of capsules (pause, resume, fork, …) wait while this is true.
    stalled: watch::Sender<bool>,
    /// Template builds wait while this is true.
    building: watch::Sender<bool>,
    serving: Mutex<Option<(CancellationToken, tokio::task::JoinHandle<()>)>>,
}

/// What the host has and how it behaves.
#[derive(Default)]
pub struct Table {
    pub capsules: BTreeMap<String, Capsule>,
    pub env: BTreeMap<String, HashMap<String, String>>,
    /// What restores are answered with instead of a capsule.
    pub refuse: Option<Status>,
    /// What claims are answered with instead.
    pub refuse_claims: Option<Status>,
    /// Restores that were begun, parked ones and others.
    pub parked_restores: usize,
    pub running_restores: usize,
    /// Running restores at this moment, and the most there ever were.
    pub restoring: usize,
    pub restoring_most: usize,
    /// Ids that were destroyed.
    pub destroyed: Vec<String>,
    /// What changes of capsules are answered with instead.
    pub refuse_changes: Option<Status>,
    /// Changes of capsules that were begun, by name.
    pub changes: Vec<String>,
    /// Named snapshots, and the capsule each was taken from.
    pub snapshots: BTreeMap<String, String>,
    /// Inactivity timeout and its action of each capsule.
    pub timeouts: BTreeMap<String, (u64, i32)>,
}

impl Table {
    /// The capsules in a state.
    pub fn in_state(&self, state: CapsuleState) -> Vec<String> {
        let of = |capsule: &&Capsule| capsule.state() == state;
        self.capsules.values().filter(of).map(|capsule| capsule.capsule_id.clone()).collect()
    }
}

impl Host {
    pub fn new(id: &str, path: PathBuf) -> Self {
        Self {
            shared: Arc::new(Shared {
                id: id.to_owned(),
                path,
                table: Mutex::default(),
                news: broadcast::Sender::new(1024),
                held: watch::Sender::new(false),
                stalled: watch::Sender::new(false),
                building: watch::Sender::new(false),
                serving: Mutex::new(None),
            }),
        }
    }

    pub fn endpoint(&self) -> String {
        socket::endpoint(&self.shared.path)
    }

    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to serve.
    pub fn up(&self) {
        let listener = socket::bind(&self.shared.path).unwrap();
        let stop = CancellationToken::new();
        let service = AgentServer::new(Scripted { shared: Arc::clone(&self.shared), stop: stop.clone() });
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = Server::builder().add_service(service);
        let task = tokio::spawn({
            let stop = stop.clone();
            async move {
                server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await.unwrap();
            }
        });
        *self.shared.serving.lock().unwrap() = Some((stop, task));
    }

    /// Stops serving, as an agent that was killed: its capsules stay.
    pub async fn down(&self) {
        let serving = self.shared.serving.lock().unwrap().take();
        if let Some((stop, task)) = serving {
            stop.cancel();
            task.await.unwrap();
        }
    }

    /// From here on restores do not end.
    pub fn hold(&self, held: bool) {
        self.shared.held.send_replace(held);
    }

    /// From here on changes of capsules do not end.
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.send_replace(stalled);
    }

    /// The host puts a capsule on disk by itself.
    pub fn suspend(&self, id: &str) {
        self.shared.set(id, CapsuleState::Paused, "");
    }

    /// From here on template builds do not end.
    pub fn hold_builds(&self, held: bool) {
        self.shared.building.send_replace(held);
    }

    /// The capsule's VMM dies.
    pub fn die(&self, id: &str, reason: &str) {
        self.shared.set(id, CapsuleState::Failed, reason);
    }

    /// A capsule that this pool-manager has not restored.
    pub fn stranger(&self, id: &str, state: CapsuleState) {
        let capsule = Capsule {
            capsule_id: id.to_owned(),
            template: "code".to_owned(),
            vcpus: 1,
            memory_mb: 512,
            ..Default::default()
        };
        self.table().capsules.insert(id.to_owned(), capsule);
        self.shared.set(id, state, "");
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, id: &str, state: CapsuleState, reason: &str) {
        let capsule = {
            let mut table = self.table();
            let capsule = table.capsules.get_mut(id).expect("a capsule of this host");
            capsule.set_state(state);
            reason.clone_into(&mut capsule.reason);
            capsule.clone()
        };
        // Nobody may be watching.
        let _watched = self.news.send(capsule);
    }
}

/// Size of the template's disk.
const DISK_MB: u64 = 4096;

struct Scripted {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

/// Counts a running restore for as long as it lives.
struct Restoring<'a>(&'a Shared);

impl Drop for Restoring<'_> {
    fn drop(&mut self) {
        self.0.table().restoring -= 1;
    }
}

fn template() -> agent::Template {
    agent::Template {
        name: "code".to_owned(),
        snapshot_key: "0123abcd".to_owned(),
        vcpus: 1,
        memory_mb: 512,
        languages: vec!["python".to_owned()],
        size_bytes: 50 << 20,
        created_at_ms: 1_700_000_000_000,
    }
}

#[tonic::async_trait]
impl Agent for Scripted {
    type EnsureTemplateStream = Streamed<TemplateProgress>;
    type WatchHostStream = Streamed<Capsule>;
    type ExecStream = Streamed<hearth_proto::wire::process::ExecEvent>;
    type ExecuteStream = Streamed<agent::ExecuteEvent>;
    type ConnectPortStream = Streamed<PortBytes>;

    async fn get_host(&self, _: Request<agent::GetHostRequest>) -> Result<Response<agent::Host>, Status> {
        Ok(Response::new(agent::Host {
            host_id: self.shared.id.clone(),
            engine: "qemu".to_owned(),
            accelerator: "tcg".to_owned(),
            cpus: 2,
            memory_mb: 4096,
            ..Default::default()
        }))
    }

    async fn ensure_template(
        &self,
        request: Request<agent::EnsureTemplateRequest>,
    ) -> Result<Response<Self::EnsureTemplateStream>, Status> {
        assert_eq!(request.into_inner().template, "code");
        let mut building = self.shared.building.subscribe();
        let line = TemplateProgress { progress: Some(Progress::Line("boot the guest".to_owned())) };
        let done = TemplateProgress { progress: Some(Progress::Template(template())) };
        let last = async move {
            building.wait_for(|building| !building).await.unwrap();
            Ok(done)
        };
        let stream = tokio_stream::once(Ok(line)).chain(futures_once(last));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn list_templates(
        &self,
        _: Request<agent::ListTemplatesRequest>,
    ) -> Result<Response<agent::ListTemplatesReply>, Status> {
        Ok(Response::new(agent::ListTemplatesReply { templates: vec![template()] }))
    }

    async fn restore(&self, request: Request<agent::RestoreRequest>) -> Result<Response<Capsule>, Status> {
        let request = request.into_inner();
        let _counted = {
            let mut table = self.shared.table();
            if let Some(status) = &table.refuse {
                return Err(status.clone());
            }
            if request.park {
                table.parked_restores += 1;
            } else {
                table.running_restores += 1;
            }
            table.restoring += 1;
            table.restoring_most = table.restoring_most.max(table.restoring);
            Restoring(&self.shared)
        };
        // Even without being held, a restore is not instantaneous: others get their turn.
        tokio::task::yield_now().await;
        let mut held = self.shared.held.subscribe();
        held.wait_for(|held| !held).await.unwrap();
        let id = request.capsule_id;
        let capsule = Capsule {
            capsule_id: id.clone(),
            template: request.template.clone(),
            vcpus: 1,
            memory_mb: 512,
            disk_mb: request.disk_mb.max(DISK_MB),
            network: request.network,
            ..Default::default()
        };
        {
            let mut table = self.shared.table();
            if request.template != "code" && !table.snapshots.contains_key(&request.template) {
                return Err(Status::not_found(format!("template {} not found", request.template)));
            }
            table.capsules.insert(id.clone(), capsule);
            table.env.insert(id.clone(), request.env);
            table.timeouts.insert(id.clone(), (request.idle_timeout_ms, request.idle_action));
        }
        let state = if request.park { CapsuleState::Parked } else { CapsuleState::Running };
        self.shared.set(&id, state, "");
        Ok(Response::new(self.shared.table().capsules[&id].clone()))
    }

    async fn claim(&self, request: Request<agent::ClaimRequest>) -> Result<Response<Capsule>, Status> {
        let request = request.into_inner();
        {
            let mut table = self.shared.table();
            if let Some(status) = &table.refuse_claims {
                return Err(status.clone());
            }
            if !table.capsules.contains_key(&request.capsule_id) {
                return Err(Status::not_found("no such capsule"));
            }
            if !request.env.is_empty() {
                return Err(Status::invalid_argument("env: a parked capsule has its environment already"));
            }
            let timeouts = (request.idle_timeout_ms, request.idle_action);
            table.timeouts.insert(request.capsule_id.clone(), timeouts);
            if let Some(capsule) = table.capsules.get_mut(&request.capsule_id) {
                capsule.network = request.network;
                capsule.disk_mb = capsule.disk_mb.max(request.disk_mb);
            }
        }
        self.shared.set(&request.capsule_id, CapsuleState::Running, "");
        Ok(Response::new(self.shared.table().capsules[&request.capsule_id].clone()))
    }

    async fn destroy(
        &self,
        request: Request<agent::DestroyRequest>,
    ) -> Result<Response<agent::DestroyReply>, Status> {
        let id = request.into_inner().capsule_id;
        if self.shared.table().capsules.contains_key(&id) {
            self.shared.set(&id, CapsuleState::Stopped, "");
            let mut table = self.shared.table();
            table.capsules.remove(&id);
            table.destroyed.push(id);
        }
        Ok(Response::new(agent::DestroyReply {}))
    }

    async fn list_capsules(
        &self,
        _: Request<agent::ListCapsulesRequest>,
    ) -> Result<Response<agent::ListCapsulesReply>, Status> {
        let capsules = self.shared.table().capsules.values().cloned().collect();
        Ok(Response::new(agent::ListCapsulesReply { capsules }))
    }

    async fn watch_host(
        &self,
        _: Request<agent::WatchHostRequest>,
    ) -> Result<Response<Self::WatchHostStream>, Status> {
        let news = BroadcastStream::new(self.shared.news.subscribe());
        let now: Vec<_> = self.shared.table().capsules.values().cloned().map(Ok).collect();
        let stop = self.stop.clone();
        let later = news.map(|capsule| capsule.map_err(|lagged| Status::data_loss(lagged.to_string())));
        let stream = tokio_stream::iter(now).chain(later);
        let ended = futures_once(async move {
            stop.cancelled().await;
            Err(Status::unavailable("the agent is stopping"))
        });
        // The first error ends the stream.
        let mut over = false;
        let stream = stream.merge(ended).take_while(move |item| {
            let go_on = !over;
            over |= item.is_err();
            go_on
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_capsule(&self, _: Request<agent::GetCapsuleRequest>) -> Result<Response<Capsule>, Status> {
        Err(Status::unimplemented("not pool-manager's call"))
    }

    async fn exec(&self, _: Request<agent::ExecCall>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented("not pool-manager's call"))
    }

    async fn execute(&self, _: Request<agent::ExecuteCall>) -> Result<Response<Self::ExecuteStream>, Status> {
        Err(Status::unimplemented("not pool-manager's call"))
    }

    async fn get_usage(
        &self,
        request: Request<agent::GetUsageRequest>,
    ) -> Result<Response<agent::UsageReply>, Status> {
        self.shared.get_usage(request.into_inner()).await.map(Response::new)
    }

    async fn set_timeouts(
        &self,
        request: Request<agent::SetTimeoutsRequest>,
    ) -> Result<Response<agent::SetTimeoutsReply>, Status> {
        self.shared.set_timeouts(request.into_inner()).await.map(Response::new)
    }

    async fn connect_port(
        &self,
        _: Request<tonic::Streaming<PortBytes>>,
    ) -> Result<Response<Self::ConnectPortStream>, Status> {
        Err(Status::unimplemented("not pool-manager's call"))
    }

    async fn evict_image(
        &self,
        _: Request<agent::EvictImageRequest>,
    ) -> Result<Response<agent::EvictImageReply>, Status> {
        Err(Status::unimplemented("not pool-manager's call"))
    }

    async fn flatten(
        &self,
        _: Request<agent::FlattenRequest>,
    ) -> Result<Response<agent::FlattenReply>, Status> {
        Err(Status::unimplemented("not pool-manager's call"))
    }

    async fn list_base_images(
        &self,
        _: Request<agent::ListBaseImagesRequest>,
    ) -> Result<Response<agent::ListBaseImagesReply>, Status> {
        Err(Status::unimplemented("not pool-manager's call"))
    }

    async fn delete_base_image(
        &self,
        _: Request<agent::DeleteBaseImageRequest>,
    ) -> Result<Response<agent::DeleteBaseImageReply>, Status> {
        Err(Status::unimplemented("not pool-manager's call"))
    }

    async fn get_console(
        &self,
        _: Request<agent::GetConsoleRequest>,
    ) -> Result<Response<agent::GetConsoleReply>, Status> {
        Err(Status::unimplemented("not pool-manager's call"))
    }

    async fn pause(
        &self,
        request: Request<agent::PauseRequest>,
    ) -> Result<Response<agent::PauseReply>, Status> {
        self.shared.pause(request.into_inner()).await.map(Response::new)
    }

    async fn resume(
        &self,
        request: Request<agent::ResumeRequest>,
    ) -> Result<Response<agent::ResumeReply>, Status> {
        self.shared.resume(request.into_inner()).await.map(Response::new)
    }

    async fn fork(&self, request: Request<agent::ForkRequest>) -> Result<Response<agent::ForkReply>, Status> {
        self.shared.fork(request.into_inner()).await.map(Response::new)
    }

    async fn create_snapshot(
        &self,
        request: Request<agent::CreateSnapshotRequest>,
    ) -> Result<Response<agent::CreateSnapshotReply>, Status> {
        self.shared.create_snapshot(request.into_inner()).await.map(Response::new)
    }

    async fn delete_snapshot(
        &self,
        request: Request<agent::DeleteSnapshotRequest>,
    ) -> Result<Response<agent::DeleteSnapshotReply>, Status> {
        self.shared.delete_snapshot(request.into_inner()).await.map(Response::new)
    }

    async fn list_snapshots(
        &self,
        _: Request<agent::ListSnapshotsRequest>,
    ) -> Result<Response<agent::ListSnapshotsReply>, Status> {
        Err(Status::unimplemented("not pool-manager's call"))
    }

    async fn grow_disk(&self, request: Request<agent::GrowDiskRequest>) -> Result<Response<Capsule>, Status> {
        self.shared.grow_disk(request.into_inner()).await.map(Response::new)
    }

    async fn rollback(
        &self,
        request: Request<agent::RollbackRequest>,
    ) -> Result<Response<agent::RollbackReply>, Status> {
        self.shared.rollback(request.into_inner()).await.map(Response::new)
    }
}

/// A stream of one future.
fn futures_once<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> Pin<Box<dyn Stream<Item = T> + Send>> {
    Box::pin(futures::stream::once(future))
}
