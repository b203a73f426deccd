//! Capsules straight from the agent, for what the public API does not measure: each call is one of agent.proto.

use crate::control::TEMPLATE;
use anyhow::{Context, bail};
use hearth_proto::{
    id::CapsuleId,
    wire::{
        agent::{
            Capture, DestroyRequest, ExecuteCall, ForkReply, ForkRequest, PauseRequest, RestoreRequest,
            ResumeRequest, agent_client::AgentClient, execute_event,
        },
        run::{RunRequest, RunStatus, run_event},
    },
};
use std::time::Duration;
use tonic::transport::Channel;

/// Of one run.
const RUN_DEADLINE: Duration = Duration::from_secs(30);

/// A client of the agent.
#[derive(Debug, Clone)]
pub struct Capsules {
    agent: AgentClient<Channel>,
}

impl Capsules {
    /// Over a channel to the agent.
    pub fn new(agent: AgentClient<Channel>) -> Self {
        Self { agent }
    }

    /// Restores a running capsule.
    pub async fn restore(&self) -> anyhow::Result<CapsuleId> {
        let id = CapsuleId::new();
        let request = RestoreRequest {
            capsule_id: id.to_string(),
            template: TEMPLATE.to_owned(),
            ..Default::default()
        };
        self.agent.clone().restore(request).await.context("restoring a capsule")?;
        Ok(id)
    }

    /// Runs code, which must succeed, and returns what it printed.
    pub async fn run(&self, id: CapsuleId, code: &str) -> anyhow::Result<String> {
        let request = RunRequest {
            code: code.to_owned(),
            timeout_ms: RUN_DEADLINE.as_millis() as u64,
            ..Default::default()
        };
        let call = ExecuteCall { capsule_id: id.to_string(), request: Some(request) };
        let mut events = self.agent.clone().execute(call).await?.into_inner();
        let mut stdout = Vec::new();
        while let Some(event) = events.message().await? {
            let Some(execute_event::Event::Run(run)) = event.event else { continue };
            match run.event.context("an empty event")? {
                run_event::Event::Stdout(chunk) => stdout.extend(chunk.data),
                run_event::Event::End(end) if end.status() == RunStatus::Ok => {
                    return Ok(String::from_utf8_lossy(&stdout).into_owned());
                }
                run_event::Event::Error(error) => bail!("{code}: {}: {}", error.name, error.value),
                run_event::Event::End(end) => bail!("{code} ended with {}", end.status().as_str_name()),
                _ => {}
            }
        }
        bail!("a run's stream ended early")
    }

    /// Runs the measured cell; its answer must be right.
    pub async fn answer(&self, id: CapsuleId) -> anyhow::Result<()> {
        let said = self.run(id, "print(1+1)").await?;
        if said == "2\n" { Ok(()) } else { bail!("print(1+1) gave {said}") }
    }

    /// Puts a capsule on disk.
    pub async fn pause(&self, id: CapsuleId) -> anyhow::Result<Capture> {
        let reply = self.agent.clone().pause(PauseRequest { capsule_id: id.to_string() }).await?;
        reply.into_inner().capture.context("a pause without figures")
    }

    /// Brings it back.
    pub async fn resume(&self, id: CapsuleId) -> anyhow::Result<()> {
        self.agent.clone().resume(ResumeRequest { capsule_id: id.to_string() }).await?;
        Ok(())
    }

    /// Makes running copies.
    pub async fn fork(&self, id: CapsuleId, copies: usize) -> anyhow::Result<(Vec<CapsuleId>, ForkReply)> {
        let ids: Vec<CapsuleId> = (0..copies).map(|_| CapsuleId::new()).collect();
        let request = ForkRequest {
            capsule_id: id.to_string(),
            new_capsule_ids: ids.iter().map(ToString::to_string).collect(),
        };
        Ok((ids, self.agent.clone().fork(request).await?.into_inner()))
    }

    /// Ends a capsule.
    pub async fn destroy(&self, id: CapsuleId) -> anyhow::Result<()> {
        self.agent.clone().destroy(DestroyRequest { capsule_id: id.to_string() }).await?;
        Ok(())
    }
}
