//! `hearth up`: every role in this process, talking over Unix sockets as they would apart.

use crate::{args::UpArgs, doctor, postgres::Postgres};
use anyhow::{Context, bail};
use hearth_agent::{agent::Agent, config::Layout};
use hearth_gateway::Gateway;
use hearth_pool_manager::PoolManager;
use hearth_service::shutdown::{self, Shutdown};
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
    /// Starts database, agent, pool-manager and gateway, in this order.
    pub async fn start(args: UpArgs) -> anyhow::Result<Self> {
        let dir = args.place.dir.clone();
        let missing = doctor::missing(&args.place, &args.agent.qemu, args.gateway.database_url.is_some());
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
        let mut config = hearth_gateway::Config::from_env()
            .map_err(|text| anyhow::anyhow!(text))
            .context("the gateway")?;
        config.listen = args.gateway.listen;
        config.database_url =
            Some(url.parse().map_err(|text: &str| anyhow::anyhow!("DATABASE_URL: {text}"))?);
        config.data_dir = dir.clone();
        config.pool_manager = hearth_service::socket::endpoint(&dir.join("pool.sock"));
        // The gateway brings the schema up to date, which pool-manager needs.
        let running = Gateway::start(config, gateway.clone()).await?;
        let mut config = hearth_pool_manager::Config::new(dir.join("pool.sock"), agent.endpoint(), url);
        config.target = args.pool.pool_target;
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

    /// Stops from left to right: no new requests, no new capsules, capsules destroyed, database last.
    pub async fn stop(self) {
        let Self { gateway, pool, agent, database, pid_file, .. } = self;
        if !gateway.finish(GRACE).await {
            tracing::warn!("requests were still open at the end of the grace period");
        }
        if !pool.finish(GRACE).await {
            tracing::warn!("pool-manager was still busy at the end of the grace period");
        }
        agent.stop().await;
        // Stopping the database waits for its process.
        if tokio::task::spawn_blocking(move || drop(database)).await.is_err() {
            tracing::warn!("the private database was not stopped cleanly");
        }
        drop(pid_file);
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
