//! The calls of agent.proto.

use super::usage::timeouts;
use crate::{
    agent::Parts,
    capsule::{
        activity::Activity,
        handle::Handle,
        network,
        registry::Refused,
        room::Room,
        runner::{self, Wish},
        settings::Settings,
        source::Source,
        timeouts::Timeouts,
    },
    disk::size::check_growth,
    error::AgentError,
    template::{
        Progress, Template,
        sizes::{self, NoSize, Wanted},
    },
};
use futures::{Stream, StreamExt, stream};
use hearth_proto::{
    id::{CapsuleId, SnapshotId},
    wire::{
        agent::{self as wire, agent_server::Agent},
        port::PortBytes,
        process::ExecEvent,
    },
};
use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tokio_stream::wrappers::{BroadcastStream, WatchStream, errors::BroadcastStreamRecvError};
use tonic::{Request, Response, Status, Streaming};

/// A restore that takes longer than this is given up.
const RESTORE_DEADLINE: Duration = Duration::from_secs(60);

pub(super) type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug, Clone)]
pub struct AgentService {
    pub(super) parts: Arc<Parts>,
}

impl AgentService {
    /// The service over an agent's parts.
    pub fn new(parts: Arc<Parts>) -> Self {
        Self { parts }
    }

    async fn restore_handle(&self, request: wire::RestoreRequest) -> Result<Handle, AgentError> {
        let id = parse(&request.capsule_id)?;
        if self.parts.shutdown.token().is_cancelled() {
            return Err(AgentError::Stopping);
        }
        let wanted = Wanted { vcpus: request.vcpus, memory_mb: request.memory_mb };
        let source = self.source(&request.template, wanted).await?;
        if request.disk_mb != 0 {
            check_growth(source.disk_mb(), request.disk_mb)
                .map_err(|reason| AgentError::Invalid { field: "disk_mb", reason })?;
        }
        let timeouts = timeouts(
            (request.idle_timeout_ms, request.idle_action),
            (request.timeout_ms, request.timeout_action),
        )?;
        let network = network::policy(request.network, &self.parts.templates.launcher.slots)?;
        if request.park && network.has_egress() {
            let reason = "a parked capsule gets it when it is claimed".to_owned();
            return Err(AgentError::Invalid { field: "network", reason });
        }
        let settings = Settings { env: request.env, disk_mb: request.disk_mb, timeouts, network };
        let wish = Wish { id, park: request.park, settings };
        let room = Room::look(&self.parts, &source)?;
        let template = request.template;
        let start = || runner::start(&self.parts, source, template, wish);
        let made = self.parts.registry.insert(id, Some(&room), start);
        match made {
            Ok(handle) => {
                self.parts.registry.changed(&handle);
                Ok(handle)
            }
            Err(Refused::Exists(handle)) => Ok(*handle),
            Err(Refused::Full(refusal)) => Err(refusal.into()),
        }
    }

    /// What a name can be restored from: a template, or a named snapshot.
    async fn source(&self, name: &str, wanted: Wanted) -> Result<Source, AgentError> {
        if let Some(template) = self.parts.templates.pick(name, wanted) {
            return Ok(Source::Template(template.map_err(no_size)?));
        }
        if name.parse::<SnapshotId>().is_err() {
            return Err(AgentError::TemplateNotFound(name.to_owned()));
        }
        let generation = self.generation(name).await?;
        let size = generation.snapshot.manifest.size;
        sizes::choose(&[size], size, wanted).map_err(no_size)?;
        Ok(Source::Generation(generation))
    }
}

fn no_size(error: NoSize) -> AgentError {
    AgentError::Invalid { field: "vcpus, memory_mb", reason: error.to_string() }
}

pub(super) fn parse(id: &str) -> Result<CapsuleId, AgentError> {
    id.parse().map_err(|error: hearth_proto::id::IdError| AgentError::Invalid {
        field: "capsule_id",
        reason: error.to_string(),
    })
}

fn template_wire(template: &Template) -> wire::Template {
    let manifest = &template.snapshot.manifest;
    wire::Template {
        name: manifest.template.clone(),
        snapshot_key: manifest.key.clone(),
        vcpus: manifest.size.vcpus,
        memory_mb: manifest.size.memory_mb,
        languages: manifest.languages.clone(),
        size_bytes: template.snapshot.disk_bytes(),
        created_at_ms: manifest.created_at_ms,
    }
}

fn progress_wire(progress: Progress) -> Result<wire::TemplateProgress, Status> {
    use wire::template_progress::Progress as Kind;
    let kind = match progress {
        Progress::Line(line) => Kind::Line(line),
        Progress::Done(template) => Kind::Template(template_wire(&template)),
        Progress::Failed(error) => return Err(AgentError::Template(error).into()),
    };
    Ok(wire::TemplateProgress { progress: Some(kind) })
}

#[tonic::async_trait]
impl Agent for AgentService {
    async fn get_host(&self, _: Request<wire::GetHostRequest>) -> Result<Response<wire::Host>, Status> {
        Ok(Response::new(self.parts.host.clone()))
    }

    type EnsureTemplateStream = Replies<wire::TemplateProgress>;

    async fn ensure_template(
        &self,
        request: Request<wire::EnsureTemplateRequest>,
    ) -> Result<Response<Self::EnsureTemplateStream>, Status> {
        let wire::EnsureTemplateRequest { template: name, vcpus, memory_mb } = request.into_inner();
        let templates = &self.parts.templates;
        let size = templates
            .size(Wanted { vcpus, memory_mb })
            .map_err(|(field, reason)| AgentError::Invalid { field, reason })?;
        let progress = templates.ensure(&name, size).ok_or(AgentError::TemplateNotFound(name))?;
        let replies = WatchStream::new(progress).scan(false, |done, progress| {
            let end = std::mem::replace(done, !matches!(progress, Progress::Line(_)));
            futures::future::ready((!end).then(|| progress_wire(progress)))
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn list_templates(
        &self,
        _: Request<wire::ListTemplatesRequest>,
    ) -> Result<Response<wire::ListTemplatesReply>, Status> {
        let templates = self.parts.templates.list().iter().map(|template| template_wire(template)).collect();
        Ok(Response::new(wire::ListTemplatesReply { templates }))
    }

    async fn restore(
        &self,
        request: Request<wire::RestoreRequest>,
    ) -> Result<Response<wire::Capsule>, Status> {
        let handle = self.restore_handle(request.into_inner()).await?;
        match timeout(RESTORE_DEADLINE, handle.started()).await {
            Ok(started) => started?,
            Err(_) => {
                handle.destroy().await;
                return Err(Status::deadline_exceeded("the restore took too long and was given up"));
            }
        }
        Ok(Response::new(handle.wire(None)))
    }

    async fn claim(&self, request: Request<wire::ClaimRequest>) -> Result<Response<wire::Capsule>, Status> {
        let request = request.into_inner();
        if !request.env.is_empty() {
            return Err(AgentError::Invalid {
                field: "env",
                reason: "a parked capsule has its environment already; restore one with it".to_owned(),
            }
            .into());
        }
        let handle = self.capsule(&request.capsule_id)?;
        let wanted = timeouts(
            (request.idle_timeout_ms, request.idle_action),
            (request.timeout_ms, request.timeout_action),
        )?;
        if request.disk_mb != 0 {
            // Before it is claimed: a refused call changes nothing.
            check_growth(handle.disk_mb(), request.disk_mb)
                .map_err(|reason| AgentError::Invalid { field: "disk_mb", reason })?;
        }
        if wanted != Timeouts::default() {
            handle.set_timeouts(move |_| wanted).await?;
        }
        let slots = &self.parts.templates.launcher.slots;
        let policy = request.network.map(|wire| network::policy(Some(wire), slots)).transpose()?;
        let guest = handle.claim(policy).await?;
        if request.disk_mb != 0 {
            handle.grow_disk(request.disk_mb).await?;
        }
        // Sets the clock, which stood still, and shows that the guest is well.
        guest.health().await.map_err(AgentError::from)?;
        Ok(Response::new(handle.wire(None)))
    }

    async fn destroy(
        &self,
        request: Request<wire::DestroyRequest>,
    ) -> Result<Response<wire::DestroyReply>, Status> {
        match self.capsule(&request.into_inner().capsule_id) {
            Ok(handle) => handle.destroy().await,
            Err(AgentError::CapsuleNotFound) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Response::new(wire::DestroyReply {}))
    }

    async fn get_capsule(
        &self,
        request: Request<wire::GetCapsuleRequest>,
    ) -> Result<Response<wire::Capsule>, Status> {
        let request = request.into_inner();
        let handle = self.capsule(&request.capsule_id)?;
        let measured = if request.usage { Some(handle.measure().await) } else { None };
        Ok(Response::new(handle.wire(measured)))
    }

    async fn list_capsules(
        &self,
        _: Request<wire::ListCapsulesRequest>,
    ) -> Result<Response<wire::ListCapsulesReply>, Status> {
        let capsules = self.parts.registry.list().iter().map(|handle| handle.wire(None)).collect();
        Ok(Response::new(wire::ListCapsulesReply { capsules }))
    }

    type WatchHostStream = Replies<wire::Capsule>;

    async fn watch_host(
        &self,
        _: Request<wire::WatchHostRequest>,
    ) -> Result<Response<Self::WatchHostStream>, Status> {
        let (capsules, changes) = self.parts.registry.watch();
        let changes = BroadcastStream::new(changes).map(|change| {
            change.map_err(|BroadcastStreamRecvError::Lagged(missed)| {
                Status::data_loss(format!("{missed} changes were missed; watch again"))
            })
        });
        let stop = self.parts.shutdown.token();
        let replies = stream::iter(capsules.into_iter().map(Ok))
            .chain(changes)
            .take_until(async move { stop.cancelled().await });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn pause(
        &self,
        request: Request<wire::PauseRequest>,
    ) -> Result<Response<wire::PauseReply>, Status> {
        Ok(Response::new(self.pause_capsule(&request.into_inner().capsule_id).await?))
    }

    async fn resume(
        &self,
        request: Request<wire::ResumeRequest>,
    ) -> Result<Response<wire::ResumeReply>, Status> {
        Ok(Response::new(self.resume_capsule(&request.into_inner().capsule_id).await?))
    }

    async fn fork(&self, request: Request<wire::ForkRequest>) -> Result<Response<wire::ForkReply>, Status> {
        Ok(Response::new(self.fork_capsule(request.into_inner()).await?))
    }

    async fn create_snapshot(
        &self,
        request: Request<wire::CreateSnapshotRequest>,
    ) -> Result<Response<wire::CreateSnapshotReply>, Status> {
        Ok(Response::new(self.create(request.into_inner()).await?))
    }

    async fn delete_snapshot(
        &self,
        request: Request<wire::DeleteSnapshotRequest>,
    ) -> Result<Response<wire::DeleteSnapshotReply>, Status> {
        self.delete(&request.into_inner().snapshot_id).await?;
        Ok(Response::new(wire::DeleteSnapshotReply {}))
    }

    async fn list_snapshots(
        &self,
        _: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<wire::ListSnapshotsReply>, Status> {
        Ok(Response::new(self.snapshots().await?))
    }

    async fn rollback(
        &self,
        request: Request<wire::RollbackRequest>,
    ) -> Result<Response<wire::RollbackReply>, Status> {
        Ok(Response::new(self.roll_back(request.into_inner()).await?))
    }

    async fn flatten(
        &self,
        request: Request<wire::FlattenRequest>,
    ) -> Result<Response<wire::FlattenReply>, Status> {
        Ok(Response::new(self.flatten_capsule(request.into_inner()).await?))
    }

    async fn list_base_images(
        &self,
        _: Request<wire::ListBaseImagesRequest>,
    ) -> Result<Response<wire::ListBaseImagesReply>, Status> {
        Ok(Response::new(self.base_images().await?))
    }

    async fn delete_base_image(
        &self,
        request: Request<wire::DeleteBaseImageRequest>,
    ) -> Result<Response<wire::DeleteBaseImageReply>, Status> {
        self.delete_base_image_of(&request.into_inner().image_id).await?;
        Ok(Response::new(wire::DeleteBaseImageReply {}))
    }

    async fn grow_disk(
        &self,
        request: Request<wire::GrowDiskRequest>,
    ) -> Result<Response<wire::Capsule>, Status> {
        let request = request.into_inner();
        let handle = self.capsule(&request.capsule_id)?;
        handle.grow_disk(request.disk_mb).await?;
        Ok(Response::new(handle.wire(None)))
    }

    type ExecStream = Replies<ExecEvent>;

    async fn exec(&self, request: Request<wire::ExecCall>) -> Result<Response<Self::ExecStream>, Status> {
        let call = request.into_inner();
        let handle = self.capsule(&call.capsule_id)?;
        let request = call.request.ok_or_else(|| Status::invalid_argument("request: missing"))?;
        let activity = handle.activity();
        let guest = handle.guest().await?;
        let events = guest.exec(request).await.map_err(AgentError::from)?;
        Ok(Response::new(until_end(&handle, activity, events)))
    }

    type ConnectPortStream = Replies<PortBytes>;

    async fn connect_port(
        &self,
        request: Request<Streaming<PortBytes>>,
    ) -> Result<Response<Self::ConnectPortStream>, Status> {
        Ok(Response::new(self.port(request.into_inner()).await?))
    }

    type ExecuteStream = Replies<wire::ExecuteEvent>;

    async fn execute(
        &self,
        request: Request<wire::ExecuteCall>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let start = Instant::now();
        let call = request.into_inner();
        let handle = self.capsule(&call.capsule_id)?;
        let request = call.request.ok_or_else(|| Status::invalid_argument("request: missing"))?;
        let activity = handle.activity();
        let guest = handle.guest().await?;
        let resume_us = start.elapsed().as_micros() as u64;
        let events = guest.execute(request).await.map_err(AgentError::from)?;
        let timings = wire::ExecuteEvent {
            event: Some(wire::execute_event::Event::Timings(wire::ExecuteTimings { resume_us })),
        };
        let events = until_end(&handle, activity, events).map(|event| {
            event.map(|run| wire::ExecuteEvent { event: Some(wire::execute_event::Event::Run(run)) })
        });
        Ok(Response::new(Box::pin(stream::once(async { Ok(timings) }).chain(events))))
    }

    async fn get_usage(
        &self,
        request: Request<wire::GetUsageRequest>,
    ) -> Result<Response<wire::UsageReply>, Status> {
        Ok(Response::new(self.usage_of(&request.into_inner())?))
    }

    async fn set_timeouts(
        &self,
        request: Request<wire::SetTimeoutsRequest>,
    ) -> Result<Response<wire::SetTimeoutsReply>, Status> {
        Ok(Response::new(self.change_timeouts(request.into_inner()).await?))
    }

    async fn evict_image(
        &self,
        request: Request<wire::EvictImageRequest>,
    ) -> Result<Response<wire::EvictImageReply>, Status> {
        let name = request.into_inner().template;
        let template = self.parts.templates.get(&name).ok_or(AgentError::TemplateNotFound(name))?;
        let key = &template.snapshot.manifest.key;
        let bytes = self.parts.images.evict(key);
        self.parts.templates.parking.clear(key);
        Ok(Response::new(wire::EvictImageReply { bytes }))
    }

    async fn get_console(
        &self,
        request: Request<wire::GetConsoleRequest>,
    ) -> Result<Response<wire::GetConsoleReply>, Status> {
        Ok(Response::new(self.console(&request.into_inner().capsule_id).await?))
    }
}

/// What to tell when the capsule's life ends that goes on now.
pub(super) fn end(handle: &Handle) -> impl Future<Output = Status> + Send + 'static {
    let mut guest = handle.watch_guest();
    guest.mark_unchanged();
    let handle = handle.clone();
    async move {
        // Its task ends with the guest replaced, or dropped.
        let _ = guest.changed().await;
        Status::unavailable(format!("the capsule is {}", handle.state()))
    }
}

/// The guest's events until they end, or until the capsule's life does: the stream of one that died, was paused or
/// rolled back says so at once. The capsule is in use as long as the stream is there.
pub(super) fn until_end<T: Send + 'static>(
    handle: &Handle,
    activity: Activity,
    events: tonic::Streaming<T>,
) -> Replies<T> {
    let ended = end(handle);
    let events = events.map(|event| {
        event.map_err(|status| Status::unavailable(format!("the guest's stream broke: {}", status.message())))
    });
    // The death of the capsule also breaks the guest's stream; whichever is seen first, the stream ends with one error.
    let ended = stream::once(async move { Err(ended.await) });
    Box::pin(stream::unfold(
        (Box::pin(events), Box::pin(ended), activity, false),
        |(mut events, mut ended, activity, done)| async move {
            if done {
                return None;
            }
            tokio::select! {
                // Output that has arrived is delivered before the end is told.
                biased;
                event = events.next() => event.map(|event| {
                    let failed = event.is_err();
                    (event, (events, ended, activity, failed))
                }),
                end = ended.next() => end.map(|end| (end, (events, ended, activity, true))),
            }
        },
    ))
}
