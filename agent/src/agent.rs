//! Builds the agent's parts in order and owns their shutdown; holds no capsule logic.

mod stop;

use crate::{
    adopt::{self, Inheritance, lock::Lock},
    capsule::{
        console,
        parking::Parking,
        paused::{PausedError, PausedRecord, PausedRecords},
        registry::Registry,
        runner,
    },
    config::{AgentConfig, ConfigError, Layout, OnStop},
    disk::{
        base::{BaseImageError, BaseImages},
        store::{self, Holds, StoreFsError},
    },
    engine::{Accelerator, Engine, EngineError, Kind, TCG_WARNING},
    grpc::{relay, service::AgentService},
    memory::image::{ImageError, Images},
    network::{dns, slots::Slots},
    reaper::{
        Reaper,
        sweep::{Spared, Swept, sweep},
    },
    snapshot::{
        generation::Generations,
        store::{Store, StoreError},
    },
    steps,
    template::Templates,
    usage::{files::UsageFiles, meminfo_kib, sampler},
    vmm::{
        launch::{LaunchError, Launcher},
        process::oom_score,
    },
};
use hearth_proto::{
    id::{CapsuleId, HostId},
    wire::agent::{self as wire, agent_server::AgentServer},
};
use hearth_service::{rpc, shutdown::Shutdown, socket};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::UnixListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

/// What is under way at shutdown ends within this; the next start's sweep ends what is left.
const GRACE: Duration = Duration::from_secs(30);

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No snapshot store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No file system for disks and snapshots.
    #[error(transparent)]
    StoreFs(#[from] StoreFsError),
    /// No records of paused capsules.
    #[error(transparent)]
    Paused(#[from] PausedError),
    /// No base images.
    #[error(transparent)]
    BaseImages(#[from] BaseImageError),
    /// No tmpfs for images.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// No launcher.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A file or the sweep failed.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Host { what, source }
}

/// What the calls work with.
#[derive(Debug)]
pub struct Parts {
    /// Capsules by id.
    pub registry: Arc<Registry>,
    /// Templates of this host.
    pub templates: Arc<Templates>,
    /// Frozen states of capsules.
    pub generations: Arc<Generations>,
    /// Records of paused capsules.
    pub paused: PausedRecords,
    /// Memory images.
    pub images: Arc<Images>,
    /// What this host is.
    pub host: wire::Host,
    /// What capsules used.
    pub usage: UsageFiles,
    /// Capsules are flattened one after the other: each takes a machine of its own.
    pub flattening: Semaphore,
    /// Stops everything.
    pub shutdown: Shutdown,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    parts: Arc<Parts>,
    reaper: Reaper,
    layout: Layout,
    on_stop: OnStop,
    server: Served,
    stop_server: CancellationToken,
    /// Given up last.
    _lock: Lock,
}

impl Agent {
    /// Takes over what an earlier agent left, and starts. `helper` is the program that has the `pager` and `kvm-probe`
    /// commands and lies beside `libhearth_preload.so`.
    pub async fn start(
        config: AgentConfig,
        dir: &Path,
        cache: &Path,
        helper: PathBuf,
    ) -> Result<Self, StartError> {
        let begun = Instant::now();
        config.check(dir)?;
        let on_stop = config.on_stop.unwrap_or(OnStop::Destroy);
        let layout = Layout::new(dir, cache);
        fs::create_dir_all(layout.agent()).map_err(host("the agent's folder"))?;
        let lock = lock(&layout).await.map_err(host("the agent's folder"))?;
        let listener = socket::bind(&layout.socket()).map_err(host("the agent's socket"))?;
        let engine = choose_engine(&config, &helper).await?;
        let layout = open_store(&config, &engine, layout).await?;
        let paused = PausedRecords::open(&layout.paused())?;
        let inheritance = inherit(&layout, &paused)?;
        console::open(&layout.consoles()).map_err(host("the capsules' consoles"))?;
        inheritance.rescue_consoles(&layout.consoles());
        let swept = sweep(&layout, &inheritance.spared())
            .await
            .map_err(host("sweeping what an earlier agent left"))?;
        report(&swept);
        outlive_capsules();
        let (parts, reaper) = build(config, engine, &layout, paused, helper, inheritance.slots())?;
        for id in &inheritance.outdated {
            parts.paused.remove(*id)?;
        }
        inheritance.take_over(&parts).await;
        stop::forget_failed(&layout.failed()).map_err(host("what an earlier agent could not keep"))?;
        let removed = parts.images.sweep()?;
        metrics::counter!("hearth_agent_swept_images_total").increment(removed as u64);
        take_over(&parts, find_paused(&parts.generations, &parts.paused)?);
        let known = parts.registry.list().iter().map(|capsule| capsule.facts.id).collect();
        parts.usage.sweep(&known).map_err(host("the capsules' usage"))?;
        console::sweep(&layout.consoles(), &known).map_err(host("the capsules' consoles"))?;
        sampler::start(&parts);
        let (server, stop_server) = serve(&parts, listener);
        metrics::gauge!("hearth_agent_start_seconds").set(begun.elapsed().as_secs_f64());
        Ok(Self { parts, reaper, layout, on_stop, server, stop_server, _lock: lock })
    }

    /// The agent's endpoint, `unix:/…`.
    pub fn endpoint(&self) -> String {
        socket::endpoint(&self.layout.socket())
    }

    /// What this host is.
    pub fn host(&self) -> &wire::Host {
        &self.parts.host
    }

    /// Stops, and does with its capsules what its setting says.
    pub async fn stop(self) {
        let on_stop = self.on_stop;
        self.stop_as(on_stop, None).await;
    }

    /// The same for a service that knows its users' capsules: only these are paused, when they are to be.
    pub async fn stop_knowing(self, users: &HashSet<CapsuleId>) {
        let on_stop = self.on_stop;
        self.stop_as(on_stop, Some(users)).await;
    }

    async fn stop_as(self, on_stop: OnStop, users: Option<&HashSet<CapsuleId>>) {
        self.parts.shutdown.begin();
        stop::capsules(&self.parts, on_stop, users).await;
        self.stop_server.cancel();
        if tokio::time::timeout(GRACE, self.server).await.is_err() {
            tracing::warn!("calls were still open at the end of the grace period");
        }
        if !self.parts.shutdown.finish(GRACE).await {
            tracing::warn!("capsules were still ending at the end of the grace period");
        }
        self.parts.templates.parking.close();
        if tokio::time::timeout(GRACE, self.reaper.drain()).await.is_err() {
            tracing::error!("VMMs are left for the next start's sweep");
        }
        self.parts.templates.launcher.slots.close();
        drop(self.parts);
        if on_stop == OnStop::Leave && stop::is_something_left(&self.layout.vmms()) {
            return;
        }
        if let Err(error) = clean_locked(&self.layout).await {
            tracing::error!(%error, "the agent's folder could not be cleaned");
        }
    }
}

/// Ends what any agent of this data folder left and removes its mount and sockets. For `hearth down`. Refused while an
/// agent runs there.
pub async fn clean(layout: &Layout) -> io::Result<Swept> {
    if !layout.agent().is_dir() {
        return Ok(Swept::default());
    }
    let _lock = lock(layout).await?;
    clean_locked(layout).await
}

/// Capsules of this data folder that run, or wait in a pool, and that a starting agent would take over.
pub fn living(layout: &Layout) -> io::Result<usize> {
    // Those that are paused are decided by their records, which are not read for this: at worst one is counted that a
    // crash left between the two.
    adopt::look(layout, &HashMap::new()).map(|inheritance| inheritance.living())
}

/// Removes all paused capsules of this data folder for good. Refused while an agent runs there. Returns how many.
pub async fn destroy_paused(layout: &Layout) -> io::Result<usize> {
    if !layout.paused().is_dir() {
        return Ok(0);
    }
    let _lock = lock(layout).await?;
    stop::forget_failed(&layout.failed())?;
    store::reopen(layout).map_err(io::Error::other)?;
    let destroyed = stop::destroy_paused(&layout.paused(), &layout.snapshots());
    store::close(layout)?;
    destroyed
}

async fn lock(layout: &Layout) -> io::Result<Lock> {
    let path = layout.lock();
    tokio::task::spawn_blocking(move || Lock::take(&path)).await.map_err(io::Error::other)?
}

async fn clean_locked(layout: &Layout) -> io::Result<Swept> {
    let swept = sweep(layout, &Spared::default()).await?;
    Images::unmount(&layout.images())?;
    store::close(layout)?;
    match fs::remove_file(layout.socket()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    Ok(swept)
}

/// Looks at what an earlier agent left, and decides what becomes of it.
fn inherit(layout: &Layout, paused: &PausedRecords) -> Result<Inheritance, StartError> {
    let (records, _) = paused.list()?;
    let paused = records.into_iter().map(|record| (record.id, record.generation)).collect();
    adopt::look(layout, &paused).map_err(host("looking at what an earlier agent left"))
}

/// Builds the parts, with nothing in them yet.
fn build(
    config: AgentConfig,
    engine: Engine,
    layout: &Layout,
    paused: PausedRecords,
    helper: PathBuf,
    kept_slots: HashSet<u32>,
) -> Result<(Arc<Parts>, Reaper), StartError> {
    let store = Store::open(&layout.templates())?;
    let images = Arc::new(Images::open(&layout.images(), config.image_budget_mb)?);
    // Capsules, parked VMMs, and a template build.
    let slots = config.max_capsules + config.parked * 4 + 4;
    let reaper = Reaper::start(slots);
    let host_facts = host_facts(&engine, layout)?;
    let shutdown = Shutdown::new();
    let network = start_network(&config, layout, kept_slots, &shutdown)?;
    let uids = (config.uid_base, slots);
    let launcher = Launcher::new(engine, layout.clone(), reaper.clone(), helper, uids, network)?;
    let launcher = Arc::new(launcher);
    let parking = Parking::start(launcher.clone(), images.clone(), config.parked, &shutdown);
    let registry = Arc::new(Registry::new(config.policy()));
    let tasks = shutdown.tasks().clone();
    let stores = (store, BaseImages::open(&layout.bases())?);
    let templates = Arc::new(Templates::new(stores, images.clone(), launcher, parking, config, tasks));
    let generations = Arc::new(Generations::open(&layout.snapshots(), templates.clone())?);
    fs::set_permissions(layout.snapshots(), fs::Permissions::from_mode(0o700))
        .map_err(host("the snapshots' folder"))?;
    let host = host_facts;
    let usage = UsageFiles::open(&layout.usage()).map_err(crate::agent::host("the capsules' usage"))?;
    let flattening = Semaphore::new(1);
    let parts = Parts { registry, templates, generations, paused, images, host, usage, flattening, shutdown };
    Ok((Arc::new(parts), reaper))
}

/// The slots' side of the network, and names for capsules that may reach something. `kept`: slots of capsules that are
/// taken over.
fn start_network(
    config: &AgentConfig,
    layout: &Layout,
    kept: HashSet<u32>,
    shutdown: &Shutdown,
) -> Result<Slots, StartError> {
    let network =
        config.network.start(&layout.router(), &layout.mark(), kept).map_err(LaunchError::Network)?;
    if let Ok(router) = network.router() {
        dns::start(router, config.network.resolvers(), shutdown.tasks(), shutdown.token())
            .map_err(LaunchError::Network)?;
    }
    Ok(network)
}

type Served = tokio::task::JoinHandle<Result<(), tonic::transport::Error>>;

/// Starts to serve; calls that came since the socket was bound have waited.
fn serve(parts: &Arc<Parts>, listener: UnixListener) -> (Served, CancellationToken) {
    let stop_server = CancellationToken::new();
    let service = AgentServer::new(AgentService::new(parts.clone()))
        .max_decoding_message_size(socket::MESSAGE_BYTES_MAX * 3)
        .max_encoding_message_size(socket::MESSAGE_BYTES_MAX * 3);
    // Calls on one connection do not wait for one that is not read: it holds its stream's window, not all.
    let server =
        Server::builder().initial_stream_window_size(1 << 20).initial_connection_window_size(256 << 20);
    let services = relay::add(Routes::new(service), &AgentService::new(parts.clone()));
    let served = tokio::spawn(rpc::serve(server, services, listener, stop_server.clone()));
    (served, stop_server)
}

/// Reads the records of paused capsules and removes generations that none of them names.
fn find_paused(generations: &Generations, paused: &PausedRecords) -> Result<Vec<PausedRecord>, StartError> {
    let (records, damaged) = paused.list()?;
    for error in &damaged {
        tracing::error!(error = hearth_service::telemetry::chain(error), "a paused capsule cannot be listed");
    }
    // A record that cannot be read may name any of them: then nothing is removed.
    if damaged.is_empty() {
        let wanted: HashSet<String> = records.iter().map(|record| record.generation.clone()).collect();
        let removed = generations.sweep(&wanted)?;
        if removed > 0 {
            tracing::warn!(removed, "removed snapshots that nobody wants");
        }
        if let Err(error) = generations.release_bases() {
            tracing::warn!(
                error = hearth_service::telemetry::chain(&error),
                "templates stay that may not be needed"
            );
        }
    }
    Ok(records)
}

/// Lists the capsules that an earlier agent paused.
fn take_over(parts: &Arc<Parts>, records: Vec<PausedRecord>) {
    for record in records {
        let id = record.id;
        if !parts.registry.adopt(runner::rest(parts, record)) {
            tracing::error!(capsule.id = %id, "a paused capsule is there twice");
        }
    }
}

fn report(swept: &Swept) {
    if swept.processes + swept.folders == 0 {
        return;
    }
    metrics::counter!("hearth_agent_swept_processes_total").increment(swept.processes as u64);
    metrics::counter!("hearth_agent_swept_folders_total").increment(swept.folders as u64);
    tracing::warn!(
        processes = swept.processes,
        folders = swept.folders,
        capsules = swept.capsules,
        "swept what an earlier agent left"
    );
}

async fn open_store(config: &AgentConfig, engine: &Engine, layout: Layout) -> Result<Layout, StartError> {
    let asked = (config.store_fs, config.store_size);
    let holds = if matches!(engine.kind, Kind::Firecracker { .. }) { Holds::Jails } else { Holds::Data };
    let opened = tokio::task::spawn_blocking(move || store::open(&layout, asked, holds));
    Ok(opened.await.map_err(|error| host("opening the store")(io::Error::other(error)))??)
}

async fn choose_engine(config: &AgentConfig, helper: &Path) -> Result<Engine, StartError> {
    let (programs, choice, helper) = (config.programs.clone(), config.engine, helper.to_owned());
    let engine = tokio::task::spawn_blocking(move || Engine::choose(&programs, choice, &helper))
        .await
        .map_err(|error| host("choosing the engine")(io::Error::other(error)))??;
    steps::engine(engine.name());
    tracing::info!(
        engine = engine.name(),
        version = engine.version,
        accelerator = engine.accelerator.as_str(),
        reason = engine.reason,
        "engine chosen"
    );
    if engine.accelerator == Accelerator::Tcg {
        tracing::warn!("{TCG_WARNING}");
    }
    metrics::gauge!(
        "hearth_agent_engine_info",
        "engine" => engine.name(),
        "version" => engine.version.clone(),
        "accelerator" => engine.accelerator.as_str(),
        "reason" => engine.reason.clone()
    )
    .set(1.0);
    Ok(engine)
}

fn host_facts(engine: &Engine, layout: &Layout) -> Result<wire::Host, StartError> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(wire::Host {
        host_id: host_id(&layout.host_id())?.to_string(),
        engine: engine.name().to_owned(),
        accelerator: engine.accelerator.as_str().to_owned(),
        reason: engine.reason.clone(),
        engine_version: engine.version.clone(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_mb: meminfo_kib("MemTotal").map_err(host("/proc/meminfo"))? >> 10,
    })
}

/// When memory runs out the kernel is to end capsules first. A host that does not allow it still works.
fn outlive_capsules() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", oom_score::AGENT.to_string()) {
        tracing::warn!(%error, "the agent may be ended before its capsules when memory runs out");
    }
}

/// The host's id, made at the first start.
fn host_id(path: &Path) -> Result<HostId, StartError> {
    match fs::read_to_string(path) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|error| host("the host's id")(io::Error::new(io::ErrorKind::InvalidData, error))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = HostId::new();
            fs::write(path, format!("{id}\n")).map_err(host("the host's id"))?;
            Ok(id)
        }
        Err(error) => Err(host("the host's id")(error)),
    }
}
