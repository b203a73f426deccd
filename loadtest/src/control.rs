//! What operators can do, over the parts' own sockets: pool targets, eviction, and waiting until nothing is under way.

use crate::{capsules::Capsules, client::Client};
use anyhow::{Context, bail};
use hearth_proto::wire::{
    agent::{
        Capsule, CapsuleState, EvictImageRequest, GetCapsuleRequest, GetHostRequest, Host,
        ListCapsulesRequest, ListTemplatesRequest, Template, agent_client::AgentClient,
    },
    pool::{GetStatusRequest, SetPoolRequest, pool_manager_client::PoolManagerClient},
};
use hearth_service::socket;
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tonic::transport::Channel;

/// The template that is measured.
pub const TEMPLATE: &str = "code";
/// VMMs that the agent keeps waiting for a snapshot, by default (HEARTH_PARKED).
const PARKED: f64 = 2.0;
/// Restores and spawns take a fraction of a second; more means that something is broken.
const QUIET_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at a state that nobody announces.
const PAUSE: Duration = Duration::from_millis(20);
/// After a change: the reaper's last work, and gauges that are set a moment after what they tell of.
const SETTLE: Duration = Duration::from_millis(150);

/// Clients of pool-manager and agent.
#[derive(Debug, Clone)]
pub struct Control {
    agent: AgentClient<Channel>,
    pool: PoolManagerClient<Channel>,
}

impl Control {
    /// Connects at the first call.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        let channel = |path: &str| socket::channel(&socket::endpoint(&dir.join(path)));
        Ok(Self {
            agent: AgentClient::new(channel("agent/agent.sock")?),
            pool: PoolManagerClient::new(channel("pool.sock")?),
        })
    }

    /// What the host is.
    pub async fn host(&self) -> anyhow::Result<Host> {
        Ok(self.agent.clone().get_host(GetHostRequest {}).await?.into_inner())
    }

    /// The measured template's facts.
    pub async fn template(&self) -> anyhow::Result<Template> {
        let reply = self.agent.clone().list_templates(ListTemplatesRequest {}).await?.into_inner();
        reply
            .templates
            .into_iter()
            .find(|template| template.name == TEMPLATE)
            .with_context(|| format!("the agent has no template `{TEMPLATE}`"))
    }

    /// For capsules straight from the agent.
    pub fn capsules_client(&self) -> Capsules {
        Capsules::new(self.agent.clone())
    }

    /// Sets how many warm capsules are kept.
    pub async fn set_pool(&self, target: u32) -> anyhow::Result<()> {
        let request = SetPoolRequest { template: TEMPLATE.to_owned(), target };
        self.pool.clone().set_pool(request).await.context("setting the pool's target")?;
        Ok(())
    }

    /// Forgets the hot image. What waits for a snapshot is ended and spawned anew on the new, empty image.
    pub async fn evict(&self) -> anyhow::Result<()> {
        let request = EvictImageRequest { template: TEMPLATE.to_owned() };
        self.agent.clone().evict_image(request).await.context("evicting the image")?;
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }

    /// The capsules that wait in the pool.
    pub async fn parked(&self) -> anyhow::Result<Vec<String>> {
        let capsules = self.capsules().await?.into_iter();
        let parked = capsules.filter(|capsule| capsule.state() == CapsuleState::Parked);
        Ok(parked.map(|capsule| capsule.capsule_id).collect())
    }

    /// Private_Dirty of a capsule's VMM and pager, in KiB.
    pub async fn private_kb(&self, capsule_id: String) -> anyhow::Result<u64> {
        let request = GetCapsuleRequest { capsule_id, usage: true };
        Ok(self.agent.clone().get_capsule(request).await?.into_inner().private_kb)
    }

    /// Waits until the pool holds `target` capsules, no capsule starts or ends, and the agent's VMMs are parked; then
    /// a short while more.
    pub async fn quiet(&self, client: &Client, target: u32) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let Some(busy) = self.busy(client, target).await? else { break };
            if QUIET_DEADLINE < start.elapsed() {
                bail!("not quiet after {} s: {busy}", QUIET_DEADLINE.as_secs());
            }
            tokio::time::sleep(PAUSE).await;
        }
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }

    /// What is still under way; `None` when nothing is.
    async fn busy(&self, client: &Client, target: u32) -> anyhow::Result<Option<String>> {
        let status = self.pool.clone().get_status(GetStatusRequest {}).await?.into_inner();
        let pool = status.pools.iter().find(|pool| pool.template == TEMPLATE).context("no pool is kept")?;
        if (pool.target, pool.parked, pool.refilling) != (target, target, 0) {
            return Ok(Some(format!("the pool is to hold {target}: {pool:?}")));
        }
        let moving = |state| matches!(state, CapsuleState::Starting | CapsuleState::Stopping);
        let capsules = self.capsules().await?;
        if let Some(capsule) = capsules.iter().find(|capsule| moving(capsule.state())) {
            return Ok(Some(format!("a capsule starts or ends: {capsule:?}")));
        }
        let vmms = client.metrics().await?.value("hearth_agent_parked_vmms");
        if vmms != Some(PARKED) {
            return Ok(Some(format!("{PARKED} VMMs are to be parked: {vmms:?}")));
        }
        Ok(None)
    }

    async fn capsules(&self) -> anyhow::Result<Vec<Capsule>> {
        Ok(self.agent.clone().list_capsules(ListCapsulesRequest {}).await?.into_inner().capsules)
    }
}
