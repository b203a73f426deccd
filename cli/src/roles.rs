//! The roles, each as a process of its own.

use crate::args::{AgentArgs, GatewayArgs, MetricsArgs, PoolManagerArgs};
use anyhow::Context;
use hearth_agent::{agent::Agent, config::OnStop};
use hearth_gateway::Gateway;
use hearth_pool_manager::PoolManager;
use hearth_service::{
    scrape,
    shutdown::{self, Shutdown},
};
use std::{process::ExitCode, time::Duration};

/// Requests under way may take this long at shutdown.
const GRACE: Duration = Duration::from_secs(20);

/// Runs the agent until a signal. Unless it is told otherwise, capsules run on for the next agent.
pub async fn agent(mut args: AgentArgs) -> anyhow::Result<ExitCode> {
    args.agent.on_stop.get_or_insert(OnStop::Leave);
    args.log.start();
    let stop = Shutdown::new();
    metrics(&args.metrics, &stop).await?;
    let helper = std::env::current_exe().context("the program's own path")?;
    let agent = Agent::start(args.agent, &args.place.dir, &args.place.cache, helper).await?;
    println!("{}", agent.endpoint());
    shutdown::signal().await.context("waiting for a signal")?;
    agent.stop().await;
    stop.begin();
    Ok(ExitCode::SUCCESS)
}

/// Runs pool-manager until a signal, or until one of its tasks ends.
pub async fn pool_manager(args: PoolManagerArgs) -> anyhow::Result<ExitCode> {
    args.log.start();
    let shutdown = Shutdown::new();
    metrics(&args.metrics, &shutdown).await?;
    std::fs::create_dir_all(&args.config.data_dir)
        .with_context(|| format!("the data folder {}", args.config.data_dir.display()))?;
    let mut running = PoolManager::start(args.config, shutdown.clone()).await?;
    println!("{}", running.endpoint());
    let outcome = tokio::select! {
        signal = shutdown::signal() => signal.context("waiting for a signal"),
        ended = running.ended() => ended.map_err(Into::into),
    };
    let code = finished(shutdown.finish(GRACE).await);
    outcome.map(|()| code)
}

/// Runs the gateway until a signal.
pub async fn gateway(args: GatewayArgs) -> anyhow::Result<ExitCode> {
    args.log.start();
    let shutdown = Shutdown::new();
    let running = Gateway::start(args.config, shutdown.clone()).await?;
    println!("http://{}", running.address());
    shutdown::signal().await.context("waiting for a signal")?;
    Ok(finished(shutdown.finish(GRACE).await))
}

/// Installs the metrics registry, and serves it where that was asked for.
async fn metrics(args: &MetricsArgs, shutdown: &Shutdown) -> anyhow::Result<()> {
    let metrics = hearth_service::metrics::install().context("the metrics registry")?;
    if let Some(address) = args.metrics_listen {
        let address = scrape::serve(address, metrics, shutdown.token())
            .await
            .with_context(|| format!("HEARTH_METRICS_LISTEN: {address}"))?;
        println!("http://{address}/metrics");
    }
    Ok(())
}

fn finished(in_time: bool) -> ExitCode {
    if !in_time {
        tracing::warn!("requests were still open at the end of the grace period");
    }
    ExitCode::SUCCESS
}
