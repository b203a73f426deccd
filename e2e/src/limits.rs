//! Timeouts, usage and states of the capsules of a test's agent.

use crate::agent::TestAgent;
use anyhow::{Context, bail};
use hearth_proto::{
    id::CapsuleId,
    wire::agent::{self as wire, CapsuleState},
};
use std::time::Duration;

/// On a busy machine everything takes long; what is waited for comes as an event.
const EVENT_DEADLINE: Duration = Duration::from_secs(120);

impl TestAgent {
    /// Restores a capsule with more wishes than [`TestAgent::restore`] takes. Id and template are filled in.
    pub async fn restore_as(&mut self, wish: wire::RestoreRequest) -> anyhow::Result<CapsuleId> {
        let id = CapsuleId::new();
        let request =
            wire::RestoreRequest { capsule_id: id.to_string(), template: "code".to_owned(), ..wish };
        self.client.restore(request).await?;
        Ok(id)
    }

    /// Waits until a capsule is reported as wanted on the stream of changes.
    pub async fn seen(
        &mut self,
        id: CapsuleId,
        what: &str,
        wanted: impl Fn(&wire::Capsule) -> bool,
    ) -> anyhow::Result<wire::Capsule> {
        let mut changes = self.client.watch_host(wire::WatchHostRequest {}).await?.into_inner();
        let id = id.to_string();
        let mut last = None;
        let seen = async {
            while let Some(capsule) = changes.message().await? {
                if capsule.capsule_id == id {
                    if wanted(&capsule) {
                        return Ok(capsule);
                    }
                    last = Some(capsule);
                }
            }
            bail!("the agent ended its stream")
        };
        match tokio::time::timeout(EVENT_DEADLINE, seen).await {
            Ok(seen) => seen,
            Err(_) => bail!("waited for {what}: {last:?}"),
        }
    }

    /// Waits until a capsule is reported in a state.
    pub async fn enters(&mut self, id: CapsuleId, state: CapsuleState) -> anyhow::Result<wire::Capsule> {
        self.seen(id, state.as_str_name(), |capsule| capsule.state() == state).await
    }

    /// Waits until a fresh measurement of a capsule is as wanted.
    pub async fn uses(
        &mut self,
        id: CapsuleId,
        what: &str,
        wanted: impl Fn(&wire::Capsule) -> bool,
    ) -> anyhow::Result<wire::Capsule> {
        let start = std::time::Instant::now();
        loop {
            let capsule = self.get(id).await?;
            if wanted(&capsule) {
                return Ok(capsule);
            }
            if EVENT_DEADLINE < start.elapsed() {
                bail!("waited for {what}: {capsule:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What a capsule used in the last ten minutes.
    pub async fn usage(&mut self, id: CapsuleId) -> anyhow::Result<Vec<wire::UsagePoint>> {
        let request = wire::GetUsageRequest { capsule_id: id.to_string(), range_sec: 600 };
        Ok(self.client.get_usage(request).await?.into_inner().points)
    }

    /// The status that a call failed with.
    pub fn status(error: &anyhow::Error) -> anyhow::Result<&tonic::Status> {
        error.downcast_ref::<tonic::Status>().context("it failed before the agent answered")
    }
}
