//! Builds the agent's parts in order and owns their shutdown; holds no capsule logic.

use crate::{
    capsule::{
        parking::Parking,
        paused::{PausedError, PausedRecord, PausedRecords},
        registry::Registry,
        runner,
    },
    config::{AgentConfig, ConfigError, Layout},
    engine::{Accelerator, Engine, EngineError, TCG_WARNING},
    grpc::service::AgentService,
    memory::image::{ImageError, Images},
    network::dns,
    reaper::{
        Reaper,
        sweep::{Swept, sweep},
    },
    snapshot::{
        generation::Generations,
        store::{Store, StoreError},
    },
    template::Templates,
    vmm::launch::{LaunchError, Launcher},
};
use hearth_proto::{
    id::HostId,
    wire::agent::{self as wire, agent_server::AgentServer},
};
use hearth_service::{rpc, shutdown::Shutdown, socket};
use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

/// Capsules are destroyed within this at shutdown; the next start's sweep ends what is left.
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
    /// No records of paused capsules.
    #[error(transparent)]
    Paused(#[from] PausedError),
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
    /// Stops everything.
    pub shutdown: Shutdown,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    parts: Arc<Parts>,
    reaper: Reaper,
    layout: Layout,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    stop_server: CancellationToken,
}

impl Agent {
    /// Sweeps what an earlier agent left and starts. `helper` is the program that has the `pager` and `kvm-probe`
    /// commands and lies beside `libhearth_preload.so`.
    pub async fn start(
        config: AgentConfig,
        dir: &Path,
        cache: &Path,
        helper: PathBuf,
    ) -> Result<Self, StartError> {
        config.check(dir)?;
        let layout = Layout::new(dir, cache);
        fs::create_dir_all(layout.agent()).map_err(host("the agent's folder"))?;
        let listener = socket::bind(&layout.socket()).map_err(host("the agent's socket"))?;
        let swept = sweep(&layout).await.map_err(host("sweeping what an earlier agent left"))?;
        report(&swept);
        let engine = choose_engine(&config, &helper).await?;
        let store = Store::open(&layout.templates())?;
        let images = Arc::new(Images::open(&layout.images(), config.image_budget_mb)?);
        // Capsules, parked VMMs, and a template build.
        let slots = config.max_capsules + config.parked * 4 + 4;
        let reaper = Reaper::start(slots);
        let host_facts = host_facts(&engine, &layout)?;
        let network = config
            .network
            .start(&layout.router(), &layout.mark(), HashSet::new())
            .map_err(LaunchError::Network)?;
        let shutdown = Shutdown::new();
        if let Ok(router) = network.router() {
            dns::start(router, config.network.resolvers(), shutdown.tasks(), shutdown.token())
                .map_err(LaunchError::Network)?;
        }
        let launcher = Arc::new(Launcher::new(
            engine,
            layout.clone(),
            reaper.clone(),
            helper,
            (config.uid_base, slots),
            network,
        )?);
        let parking = Parking::start(launcher.clone(), images.clone(), config.parked, &shutdown);
        let registry = Arc::new(Registry::new(config.max_capsules));
        let tasks = shutdown.tasks().clone();
        let templates = Arc::new(Templates::new(store, images.clone(), launcher, parking, config, tasks));
        let generations = Arc::new(Generations::open(&layout.snapshots(), templates.clone())?);
        fs::set_permissions(layout.snapshots(), fs::Permissions::from_mode(0o700))
            .map_err(host("the snapshots' folder"))?;
        let paused = PausedRecords::open(&layout.paused())?;
        let records = find_paused(&generations, &paused)?;
        let parts =
            Arc::new(Parts { registry, templates, generations, paused, images, host: host_facts, shutdown });
        take_over(&parts, records);
        let stop_server = CancellationToken::new();
        let service = AgentServer::new(AgentService::new(parts.clone()))
            .max_decoding_message_size(socket::MESSAGE_BYTES_MAX * 3)
            .max_encoding_message_size(socket::MESSAGE_BYTES_MAX * 3);
        let server =
            // Calls on one connection do not wait for one that is not read: it holds its stream's window, not all.
            Server::builder().initial_stream_window_size(1 << 20).initial_connection_window_size(256 << 20);
        let server = tokio::spawn(rpc::serve(server, Routes::new(service), listener, stop_server.clone()));
        Ok(Self { parts, reaper, layout, server, stop_server })
    }

    /// The agent's endpoint, `unix:/…`.
    pub fn endpoint(&self) -> String {
        socket::endpoint(&self.layout.socket())
    }

    /// What this host is.
    pub fn host(&self) -> &wire::Host {
        &self.parts.host
    }

    /// Destroys all capsules but paused ones, which stay on disk, and gives everything back.
    pub async fn stop(self) {
        self.parts.shutdown.begin();
        let capsules = self.parts.registry.list();
        futures::future::join_all(capsules.iter().map(|capsule| capsule.leave())).await;
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
        if let Err(error) = clean(&self.layout).await {
            tracing::error!(%error, "the agent's folder could not be cleaned");
        }
    }
}

/// Ends what any agent of this data folder left and removes its mount and sockets. For `hearth down`.
pub async fn clean(layout: &Layout) -> io::Result<Swept> {
    let swept = sweep(layout).await?;
    Images::unmount(&layout.images())?;
    match fs::remove_file(layout.socket()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    Ok(swept)
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
        if parts.registry.insert(id, || runner::rest(parts, record)).is_err() {
            tracing::error!(capsule.id = %id, "a paused capsule is there twice");
        }
    }
}

fn report(swept: &Swept) {
    if swept.processes + swept.folders == 0 {
        return;
    }
    metrics::counter!("hearth_agent_swept_processes_total").increment(swept.processes as u64);
    tracing::warn!(
        processes = swept.processes,
        folders = swept.folders,
        capsules = swept.capsules.len(),
        "swept what an earlier agent left"
    );
}

async fn choose_engine(config: &AgentConfig, helper: &Path) -> Result<Engine, StartError> {
    let (programs, choice, helper) = (config.programs.clone(), config.engine, helper.to_owned());
    let engine = tokio::task::spawn_blocking(move || Engine::choose(&programs, choice, &helper))
        .await
        .map_err(|error| host("choosing the engine")(io::Error::other(error)))??;
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
    let memory = fs::read_to_string("/proc/meminfo").map_err(host("/proc/meminfo"))?;
    let memory_kb = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .unwrap_or(0);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(wire::Host {
        host_id: host_id(&layout.host_id())?.to_string(),
        engine: engine.name().to_owned(),
        accelerator: engine.accelerator.as_str().to_owned(),
        reason: engine.reason.clone(),
        engine_version: engine.version.clone(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_mb: memory_kb >> 10,
    })
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
