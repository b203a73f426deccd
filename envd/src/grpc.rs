//! The services of envd: the gate, the clock, then the call. Here is `hearth.envd.v1.Envd`.

mod activation;
mod exec;
mod files;
mod port;
mod processes;
mod status;

use crate::{
    disk,
    files::Files,
    gate::{Call, Gate},
    process::Processes,
    snapshot::{Guest, activate, prepare},
};
use futures::{Stream, StreamExt as _, stream::BoxStream};
use hearth_proto::{
    metadata,
    wire::{
        envd::{
            ActivateReply, ActivateRequest, GrowDiskReply, GrowDiskRequest, HealthReply, HealthRequest,
            PrepareReply, PrepareRequest, envd_server::Envd,
        },
        port::PortBytes,
        process::{ExecEvent, ExecRequest},
        run::{RunEvent, RunRequest},
    },
};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

/// What the calls act on. Clones share it.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    gate: Arc<Gate>,
    guest: Guest,
    processes: Processes,
    files: Files,
    /// The capsule's address.
    own: Option<IpAddr>,
}

impl Service {
    /// The service behind `gate`.
    pub fn new(gate: Arc<Gate>, guest: Guest, processes: Processes, own: Option<IpAddr>) -> Self {
        Self { inner: Arc::new(Inner { gate, guest, processes, files: Files::default(), own }) }
    }

    /// Every call but `Activate` and `Prepare` begins here.
    fn enter(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.inner.gate.work(token(metadata))?;
        self.keep_clock(metadata)
    }

    /// Corrects the clock by the agent's time. Only for callers that passed the gate: time is not for others to set.
    fn keep_clock(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(agent_ns) = metadata.get(metadata::REALTIME_NS) else { return Ok(()) };
        let agent_ns = agent_ns.to_str().ok().and_then(|text| text.parse().ok());
        let agent_ns =
            agent_ns.ok_or_else(|| Status::invalid_argument("x-hearth-realtime-ns: not a number"))?;
        self.inner.guest.clock.keep(agent_ns).map_err(|error| {
            tracing::error!(%error, "the clock cannot be set");
            Status::internal("the clock cannot be set")
        })
    }
}

/// A task that has begun finishes also when its caller hangs up: half an activation or preparation is no state.
async fn to_the_end<T: Send + 'static>(
    task: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(task).await.map_err(|_| Status::internal("the call ended without an answer"))?
}

fn token(metadata: &MetadataMap) -> Option<&str> {
    metadata.get(metadata::TOKEN).and_then(|token| token.to_str().ok())
}

#[tonic::async_trait]
impl Envd for Service {
    async fn activate(&self, request: Request<ActivateRequest>) -> Result<Response<ActivateReply>, Status> {
        let token = token(request.metadata()).map(str::to_owned);
        let inner = Arc::clone(&self.inner);
        let checked = activation::check(request.into_inner())?;
        let reply = to_the_end(async move {
            let transition = inner.gate.begin(token.as_deref(), Call::Activate)?;
            let times =
                activate::activate(&inner.guest, checked.activation).await.map_err(status::internal)?;
            transition.activated(checked.token);
            Ok(activation::reply(times))
        });
        Ok(Response::new(reply.await?))
    }

    async fn prepare(&self, request: Request<PrepareRequest>) -> Result<Response<PrepareReply>, Status> {
        let token = token(request.metadata()).map(str::to_owned);
        let inner = Arc::clone(&self.inner);
        let languages = request.into_inner().languages;
        to_the_end(async move {
            let transition = inner.gate.begin(token.as_deref(), Call::Prepare)?;
            prepare::prepare(&inner.guest, &languages).await.map_err(status::internal)?;
            transition.prepared();
            Ok(())
        })
        .await?;
        Ok(Response::new(PrepareReply {}))
    }

    async fn health(&self, request: Request<HealthRequest>) -> Result<Response<HealthReply>, Status> {
        self.enter(request.metadata())?;
        let realtime_ns = self.inner.guest.clock.now_ns().map_err(status::internal)?;
        let uptime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from);
        let uptime_ms = u64::try_from(uptime.map_err(status::internal)?.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(HealthReply { realtime_ns, uptime_ms }))
    }

    async fn grow_disk(&self, request: Request<GrowDiskRequest>) -> Result<Response<GrowDiskReply>, Status> {
        self.enter(request.metadata())?;
        let bytes = request.into_inner().bytes;
        disk::grow(bytes).await.map_err(status::internal)?;
        Ok(Response::new(GrowDiskReply {}))
    }

    type ExecStream = BoxStream<'static, Result<ExecEvent, Status>>;

    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        self.enter(request.metadata())?;
        let order = exec::order(request.into_inner());
        let events = self.inner.processes.exec(order, &self.inner.guest.env())?;
        let stream = tokio_stream::wrappers::ReceiverStream::new(events);
        Ok(Response::new(boxed(stream.map(exec::wire))))
    }

    type ConnectPortStream = BoxStream<'static, Result<PortBytes, Status>>;

    async fn connect_port(
        &self,
        request: Request<Streaming<PortBytes>>,
    ) -> Result<Response<Self::ConnectPortStream>, Status> {
        self.enter(request.metadata())?;
        Ok(Response::new(port::connect(request.into_inner(), self.inner.own).await?))
    }

    type ExecuteStream = BoxStream<'static, Result<RunEvent, Status>>;

    async fn execute(&self, request: Request<RunRequest>) -> Result<Response<Self::ExecuteStream>, Status> {
        self.enter(request.metadata())?;
        let events =
            self.inner.guest.runtimes.execute(request.into_inner()).await.map_err(status::runtime)?;
        Ok(Response::new(boxed(events)))
    }
}

fn boxed<T: Send + 'static>(
    stream: impl Stream<Item = T> + Send + 'static,
) -> BoxStream<'static, Result<T, Status>> {
    stream.map(Ok).boxed()
}
