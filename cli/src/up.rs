//! `hearth up`: every role in this process, talking over Unix sockets as they would apart.

use crate::{args::UpArgs, doctor, postgres::Postgres};
use anyhow::{Context, bail};
use hearth_agent::{
    agent::Agent,
    config::{Layout, OnStop},
};
use hearth_gateway::Gateway;
use hearth_pool_manager::PoolManager;
use hearth_service::{
    settings,
    shutdown::{self, Shutdown},
};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// Requests under way may take this long at shutdown.
const GRACE: Duration = Duration::from_secs(20);

/// All roles, started. Stop it with [`Service::stop`].
pub struct Service {
    gateway: Shutdown,
    pool: Shutdown,
    /// Where the HTTP API is.
    pub address: SocketAddr,
    key_file: PathBuf,
    agent: Agent,
    pools: hearth_pool_manager::Running,
    // After the parts that use it.
    database: Option<Postgres>,
    pid_file: PidFile,
}

impl Service {
    /// Starts database, agent, pool-manager and gateway, in this order. Unless it is told otherwise, users' capsules are
    /// paused when it stops.
    pub async fn start(mut args: UpArgs) -> anyhow::Result<Self> {
        args.agent.on_stop.get_or_insert(OnStop::Pause);
        let dir = args.place.dir.clone();
        let (gateway_config, pool_config) = configs(&args)?;
        let missing = doctor::missing(&args.place, &args.agent.programs, args.gateway.database_url.is_some());
        if !missing.is_empty() {
            bail!("something is missing (`hearth doctor` shows everything):\n  {}", missing.join("\n  "));
        }
        fs::create_dir_all(&dir).with_context(|| format!("the data folder {}", dir.display()))?;
        let pid_file = PidFile::create(&dir)?;
        hearth_service::metrics::install().context("the metrics registry")?;
        let (database, url) = match &args.gateway.database_url {
            Some(url) => (None, url.clone()),
            None => {
                let folder = dir.clone();
                let database = tokio::task::spawn_blocking(move || Postgres::start(&folder)).await??;
                let url = database.url().to_owned();
                (Some(database), url)
            }
        };
        let helper = std::env::current_exe().context("the program's own path")?;
        let agent = Agent::start(args.agent, &dir, &args.place.cache, helper).await?;
        let (pool, gateway) = (Shutdown::new(), Shutdown::new());
        let database_url = Some(url.parse().map_err(|text: &str| anyhow::anyhow!("DATABASE_URL: {text}"))?);
        let config = hearth_gateway::Config { database_url, ..gateway_config };
        let running = Gateway::start(config, gateway.clone()).await?;
        let config = hearth_pool_manager::Config { database_url: url, ..pool_config };
        let pools = PoolManager::start(config, pool.clone()).await?;
        Ok(Self {
            gateway,
            pool,
            address: running.address(),
            key_file: running.key_file().to_owned(),
            agent,
            pools,
            database,
            pid_file,
        })
    }

    /// The first API key, when it is still in its file.
    pub fn api_key(&self) -> Option<String> {
        fs::read_to_string(&self.key_file).ok().map(|text| text.trim().to_owned())
    }

    /// Where the HTTP API is, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Resolves when a part ended that must not.
    async fn broken(&mut self) -> anyhow::Error {
        match self.pools.ended().await {
            Err(error) => error.into(),
            Ok(()) => std::future::pending().await,
        }
    }

    /// Stops from left to right: no new requests, no new capsules, users' capsules paused and all others destroyed (or
    /// what `HEARTH_ON_STOP` says), database last.
    pub async fn stop(self) {
        let Self { gateway, pool, agent, pools, database, pid_file, .. } = self;
        if !gateway.finish(GRACE).await {
            tracing::warn!("requests were still open at the end of the grace period");
        }
        // Asked now: what is created later than this has nobody who waits for it.
        let users = pools.users().await;
        if !pool.finish(GRACE).await {
            tracing::warn!("pool-manager was still busy at the end of the grace period");
        }
        match users {
            Some(users) => agent.stop_knowing(&users).await,
            None => agent.stop().await,
        }
        // Stopping the database waits for its process.
        if tokio::task::spawn_blocking(move || drop(database)).await.is_err() {
            tracing::warn!("the private database was not stopped cleanly");
        }
        drop(pid_file);
    }
}

/// The settings of gateway and pool-manager: from the options there are, and from the environment. Their database is
/// set when it is known.
///
/// # Errors
/// Everything that is wrong with anybody's settings, one line each.
fn configs(args: &UpArgs) -> anyhow::Result<(hearth_gateway::Config, hearth_pool_manager::Config)> {
    let dir = args.place.dir.clone();
    let mut faults = Vec::new();
    let mut gateway = settings::from_env::<hearth_gateway::Config>().map_err(|fault| faults.push(fault)).ok();
    let mut pool =
        settings::from_env::<hearth_pool_manager::Config>().map_err(|fault| faults.push(fault)).ok();
    if let Some(config) = &mut gateway {
        config.listen = args.gateway.listen;
        config.data_dir = dir.clone();
        config.pool_manager = None;
        let lacks_only_a_database = |fault: &String| fault.starts_with("DATABASE_URL");
        faults.extend(config.faults().into_iter().filter(|fault| !lacks_only_a_database(fault)));
    }
    if let Some(config) = &mut pool {
        config.target = args.pool.pool_target;
        (config.socket, config.agent_endpoint) = (None, None);
        config.data_dir = dir.clone();
        // Checked again with the real one.
        config.database_url = "postgres://".to_owned();
        faults.extend(config.check().err().into_iter().flat_map(|error| error.0));
    }
    faults.extend(args.agent.check(&dir).err().map(|error| error.to_string()));
    match (gateway, pool) {
        (Some(gateway), Some(pool)) if faults.is_empty() => Ok((gateway, pool)),
        _ => bail!("settings: {}", faults.join("; ")),
    }
}

/// Runs everything until a signal.
pub async fn up(args: UpArgs) -> anyhow::Result<ExitCode> {
    args.log.start();
    let mut service = tokio::select! {
        service = Service::start(args) => service?,
        signal = shutdown::signal() => {
            signal.context("waiting for a signal")?;
            bail!("stopped while starting");
        }
    };
    announce(&service);
    let outcome = tokio::select! {
        signal = shutdown::signal() => signal.context("waiting for a signal"),
        error = service.broken() => Err(error),
    };
    println!("Stopping.");
    service.stop().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

fn announce(service: &Service) {
    let url = service.url();
    let key = service.api_key().unwrap_or_else(|| "YOUR_KEY".to_owned());
    println!("Hearth is up.");
    println!("  URL      {url}");
    println!("  API key  {key}");
    println!("Try it (the first start builds the template, which takes a minute; see {url}/ready):");
    println!("  curl -s {url}/v1/execute -H 'X-API-Key: {key}' -d '{{\"code\": \"print(1+1)\"}}'");
}

/// Says which process runs Hearth in this data folder; removed when dropped.
#[derive(Debug)]
struct PidFile(PathBuf);

impl PidFile {
    fn create(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("hearth.pid");
        if let Some(pid) = running(dir) {
            bail!("Hearth runs already in {} (process {pid}): hearth down stops it", dir.display());
        }
        fs::write(&path, std::process::id().to_string()).context("the pid file")?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(%error, "the pid file is left");
        }
    }
}

/// The process that runs Hearth in this data folder.
pub fn running(dir: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(dir.join("hearth.pid")).ok()?.trim().parse().ok()?;
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let is_hearth = program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("hearth"));
    (is_hearth && pid != std::process::id() as i32).then_some(pid)
}

/// Where the agent of this data folder keeps its things.
pub fn layout(place: &crate::args::Where) -> Layout {
    Layout::new(&place.dir, &place.cache)
}
