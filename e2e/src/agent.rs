//! An agent as a process of its own, and a client of it.

use crate::process::{Hearth, until};
use anyhow::{Context, bail};
use futures::StreamExt;
use hearth_proto::{
    id::CapsuleId,
    wire::{
        agent::{self as wire, agent_client::AgentClient, execute_event, template_progress::Progress},
        run::{End, RunRequest, run_event},
    },
};
use std::{path::Path, time::Duration};
use tonic::transport::Channel;

/// A started agent.
pub struct TestAgent {
    /// Its process.
    pub process: Hearth,
    /// A client.
    pub client: AgentClient<Channel>,
}

/// What a run gave.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Ran {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// text/plain of the last expression's value.
    pub value: Option<String>,
    /// The error's name and value.
    pub error: Option<(String, String)>,
    /// How it ended.
    pub end: Option<End>,
}

impl TestAgent {
    /// Starts an agent in `dir` and waits until it answers. It ends its capsules when it stops, unless `env` says
    /// otherwise.
    pub async fn start(dir: &Path, env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut all = vec![("HEARTH_ON_STOP", "destroy")];
        all.extend_from_slice(env);
        Self::meet(dir, Hearth::start(dir, &["agent"], &all)?).await
    }

    /// A client of an agent that was just started in `dir`; waits until it answers.
    pub async fn meet(dir: &Path, mut process: Hearth) -> anyhow::Result<Self> {
        let socket = dir.join("agent/agent.sock");
        // The agent sweeps and probes before it serves.
        until(Duration::from_secs(60), "the agent's socket", || {
            if process.has_ended() {
                bail!("the agent ended:\n{}", process.log());
            }
            Ok(process.log().contains("unix:").then_some(()))
        })?;
        let channel = hearth_service::socket::channel(&hearth_service::socket::endpoint(&socket))?;
        let client = AgentClient::new(channel).max_decoding_message_size(64 << 20);
        Ok(Self { process, client })
    }

    /// Builds or loads the template `code`.
    pub async fn ensure_code(&mut self) -> anyhow::Result<wire::Template> {
        self.ensure("code").await
    }

    /// Builds or loads a template.
    pub async fn ensure(&mut self, name: &str) -> anyhow::Result<wire::Template> {
        let request = wire::EnsureTemplateRequest { template: name.to_owned(), ..Default::default() };
        let mut progress = self.client.ensure_template(request).await?.into_inner();
        while let Some(message) = progress.next().await {
            if let Some(Progress::Template(template)) = message?.progress {
                return Ok(template);
            }
        }
        bail!("no template at the end of its progress")
    }

    /// Restores a capsule.
    pub async fn restore(&mut self, park: bool) -> anyhow::Result<CapsuleId> {
        let id = CapsuleId::new();
        let request = wire::RestoreRequest {
            capsule_id: id.to_string(),
            template: "code".to_owned(),
            park,
            ..Default::default()
        };
        self.client.restore(request).await?;
        Ok(id)
    }

    /// Runs code in a capsule.
    pub async fn run(&mut self, id: CapsuleId, code: &str) -> anyhow::Result<Ran> {
        self.run_request(id, RunRequest { code: code.to_owned(), timeout_ms: 30_000, ..Default::default() })
            .await
    }

    /// Runs a request in a capsule.
    pub async fn run_request(&mut self, id: CapsuleId, request: RunRequest) -> anyhow::Result<Ran> {
        let call = wire::ExecuteCall { capsule_id: id.to_string(), request: Some(request) };
        let mut events = self.client.execute(call).await?.into_inner();
        let mut ran = Ran::default();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(event) = events.next().await {
            let Some(execute_event::Event::Run(run)) = event?.event else { continue };
            match run.event.context("an empty event")? {
                run_event::Event::Stdout(chunk) => stdout.extend(chunk.data),
                run_event::Event::Stderr(chunk) => stderr.extend(chunk.data),
                run_event::Event::Result(result) if result.is_main => {
                    ran.value =
                        result.parts.into_iter().find(|part| part.mime == "text/plain").map(|part| part.data);
                }
                run_event::Event::Result(_) | run_event::Event::Artifact(_) => {}
                run_event::Event::Error(error) => ran.error = Some((error.name, error.value)),
                run_event::Event::End(end) => ran.end = Some(end),
            }
        }
        ran.stdout = String::from_utf8_lossy(&stdout).into_owned();
        ran.stderr = String::from_utf8_lossy(&stderr).into_owned();
        Ok(ran)
    }

    /// A capsule's facts, memory and faults included.
    pub async fn get(&mut self, id: CapsuleId) -> anyhow::Result<wire::Capsule> {
        let request = wire::GetCapsuleRequest { capsule_id: id.to_string(), usage: true };
        Ok(self.client.get_capsule(request).await?.into_inner())
    }

    /// Destroys a capsule.
    pub async fn destroy(&mut self, id: CapsuleId) -> anyhow::Result<()> {
        self.client.destroy(wire::DestroyRequest { capsule_id: id.to_string() }).await?;
        Ok(())
    }
}
