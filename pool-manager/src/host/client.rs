//! Typed calls to one agent, each with its deadline.

use super::{
    HostFacts,
    observed::{Live, Observed, ObservedError},
};
use crate::{
    capsule::settings::{Network, Timeouts},
    template::{Template, fit::Size},
};
use hearth_proto::{
    id::CapsuleId,
    wire::agent::{self, agent_client::AgentClient},
};
use hearth_service::socket::{self, EndpointError};
use std::{collections::HashMap, future::Future, time::Duration};
use tokio::time::timeout;
use tonic::{Code, Response, Status, Streaming, transport::Channel};

/// A restore takes 0.1 s; 30 s is a host that swaps.
const RESTORE: Duration = Duration::from_secs(30);
const CLAIM: Duration = Duration::from_secs(10);
const DESTROY: Duration = Duration::from_secs(10);
/// Calls that only read.
const READ: Duration = Duration::from_secs(10);
/// A template build says something at least this often.
const BUILD_SILENCE: Duration = Duration::from_secs(120);

/// Environment variables of a capsule.
pub(crate) type Env = HashMap<String, String>;

/// Why a call to an agent did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The host has no room now.
    #[error("the host has no room: {0}")]
    NoCapacity(String),
    /// It cannot be reached.
    #[error("the host's agent is away: {0}")]
    Away(String),
    /// It did not answer in time.
    #[error("{call} took longer than {} s", after.as_secs())]
    Late { call: &'static str, after: Duration },
    /// It does not know the capsule or the snapshot.
    #[error("the host does not know it: {0}")]
    Unknown(String),
    /// Not in the state the capsule is in, or never on this host.
    #[error("the host refused: {0}")]
    Denied(String),
    /// A field is wrong; the text names it.
    #[error("{0}")]
    Invalid(String),
    /// It answered that it cannot.
    #[error("{call} failed: {message}")]
    Failed { call: &'static str, message: String },
    /// It answered something that breaks the contract.
    #[error("the agent's answer cannot be read")]
    Answer(#[from] ObservedError),
}

impl AgentError {
    /// One word for logs: failures of one kind in a row are logged once.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NoCapacity(_) => "no_capacity",
            Self::Away(_) => "away",
            Self::Late { .. } => "late",
            Self::Unknown(_) => "unknown",
            Self::Denied(_) => "denied",
            Self::Invalid(_) => "invalid",
            Self::Failed { .. } => "failed",
            Self::Answer(_) => "answer",
        }
    }

    pub(crate) fn from_status(call: &'static str, status: &Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::ResourceExhausted => Self::NoCapacity(message),
            Code::Unavailable => Self::Away(message),
            Code::NotFound => Self::Unknown(message),
            Code::FailedPrecondition => Self::Denied(message),
            Code::InvalidArgument => Self::Invalid(message),
            _ => Self::Failed { call, message },
        }
    }
}

/// A step of a template build.
#[derive(Debug)]
pub(crate) enum Progress {
    /// For people.
    Line(String),
    /// The build is over.
    Done(Template),
}

/// One agent. Clones share one connection, which comes back by itself.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(super) client: AgentClient<Channel>,
}

/// How a capsule starts for its user.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    pub(crate) env: Env,
    /// The least size of its disk in MiB; 0: its template's.
    pub(crate) disk_mb: u64,
    /// None: nothing.
    pub(crate) network: Option<Network>,
    pub(crate) timeouts: Timeouts,
    /// The size of its machine; 0: whatever there is.
    pub(crate) size: Size,
}

impl Agent {
    /// A client that connects at its first call.
    pub(crate) fn new(endpoint: &str) -> Result<Self, EndpointError> {
        let channel = socket::channel(endpoint)?;
        let client = AgentClient::new(channel)
            .max_decoding_message_size(socket::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(socket::MESSAGE_BYTES_MAX);
        Ok(Self { client })
    }

    /// What the host is.
    pub(crate) async fn host(&self) -> Result<HostFacts, AgentError> {
        let mut client = self.client.clone();
        let host = call("GetHost", READ, client.get_host(agent::GetHostRequest {})).await?;
        if host.host_id.is_empty() {
            return Err(AgentError::Failed { call: "GetHost", message: "the host has no id".to_owned() });
        }
        Ok(HostFacts {
            id: host.host_id,
            engine: host.engine,
            accelerator: host.accelerator,
            cpus: host.cpus,
            memory_mb: host.memory_mb,
        })
    }

    /// Restores a capsule that then waits with stopped vCPUs.
    pub(crate) async fn restore_parked(&self, id: CapsuleId, template: &str) -> Result<(), AgentError> {
        let request = agent::RestoreRequest {
            capsule_id: id.to_string(),
            template: template.to_owned(),
            park: true,
            ..Default::default()
        };
        self.restore(request).await
    }

    /// Restores a capsule that runs, from a template or a named snapshot.
    pub(crate) async fn restore_running(
        &self,
        id: CapsuleId,
        template: &str,
        start: Start,
    ) -> Result<(), AgentError> {
        let request = agent::RestoreRequest {
            capsule_id: id.to_string(),
            template: template.to_owned(),
            env: start.env,
            disk_mb: start.disk_mb,
            vcpus: start.size.vcpus,
            memory_mb: start.size.memory_mb,
            idle_timeout_ms: start.timeouts.idle_ms(),
            idle_action: start.timeouts.action.wire().into(),
            network: start.network.map(Into::into),
            ..Default::default()
        };
        self.restore(request).await
    }

    async fn restore(&self, request: agent::RestoreRequest) -> Result<(), AgentError> {
        let mut client = self.client.clone();
        let capsule = call("Restore", RESTORE, client.restore(request)).await?;
        alive("Restore", capsule)
    }

    /// Makes a parked capsule run, for its user. It has its environment already.
    pub(crate) async fn claim(&self, id: CapsuleId, start: Start) -> Result<(), AgentError> {
        let mut client = self.client.clone();
        let request = agent::ClaimRequest {
            capsule_id: id.to_string(),
            env: start.env,
            disk_mb: start.disk_mb,
            idle_timeout_ms: start.timeouts.idle_ms(),
            idle_action: start.timeouts.action.wire().into(),
            network: start.network.map(Into::into),
            ..Default::default()
        };
        let capsule = call("Claim", CLAIM, client.claim(request)).await?;
        alive("Claim", capsule)
    }

    /// Ends a capsule. Succeeds for capsules that are gone.
    pub(crate) async fn destroy(&self, id: CapsuleId) -> Result<(), AgentError> {
        let mut client = self.client.clone();
        let request = agent::DestroyRequest { capsule_id: id.to_string() };
        call("Destroy", DESTROY, client.destroy(request)).await?;
        Ok(())
    }

    /// Every capsule of the host. Those that cannot be read are logged and left out.
    pub(crate) async fn list(&self) -> Result<Vec<Observed>, AgentError> {
        let mut client = self.client.clone();
        let reply = call("ListCapsules", READ, client.list_capsules(agent::ListCapsulesRequest {})).await?;
        Ok(reply.capsules.into_iter().filter_map(readable).collect())
    }

    /// The stream of states. It ends when the agent does.
    pub(crate) async fn watch(&self) -> Result<Streaming<agent::Capsule>, AgentError> {
        let mut client = self.client.clone();
        call("WatchHost", READ, client.watch_host(agent::WatchHostRequest {})).await
    }

    /// The templates that capsules can be restored from.
    pub(crate) async fn templates(&self) -> Result<Vec<Template>, AgentError> {
        let mut client = self.client.clone();
        let reply =
            call("ListTemplates", READ, client.list_templates(agent::ListTemplatesRequest {})).await?;
        Ok(reply.templates.into_iter().map(Template::from).collect())
    }

    /// Builds the template unless it is there.
    pub(crate) async fn ensure(&self, template: &str) -> Result<Build, AgentError> {
        let mut client = self.client.clone();
        let request = agent::EnsureTemplateRequest { template: template.to_owned(), ..Default::default() };
        let stream = call("EnsureTemplate", BUILD_SILENCE, client.ensure_template(request)).await?;
        Ok(Build { stream })
    }
}

/// A template build under way.
#[derive(Debug)]
pub(crate) struct Build {
    stream: Streaming<agent::TemplateProgress>,
}

impl Build {
    /// The next step. An error also when the build is silent for too long. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Progress, AgentError> {
        const CALL: &str = "EnsureTemplate";
        loop {
            let message = timeout(BUILD_SILENCE, self.stream.message())
                .await
                .map_err(|_| AgentError::Late { call: CALL, after: BUILD_SILENCE })?
                .map_err(|status| AgentError::from_status(CALL, &status))?
                .ok_or_else(|| AgentError::Failed {
                    call: CALL,
                    message: "the build ended without a template".to_owned(),
                })?;
            match message.progress {
                Some(agent::template_progress::Progress::Line(line)) => return Ok(Progress::Line(line)),
                Some(agent::template_progress::Progress::Template(template)) => {
                    return Ok(Progress::Done(template.into()));
                }
                None => {}
            }
        }
    }
}

pub(super) async fn call<T>(
    name: &'static str,
    after: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, AgentError> {
    match timeout(after, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(AgentError::from_status(name, &status)),
        Err(_) => Err(AgentError::Late { call: name, after }),
    }
}

/// An answer about a capsule that should be alive.
pub(super) fn alive(call: &'static str, capsule: agent::Capsule) -> Result<(), AgentError> {
    let observed = Observed::try_from(capsule)?;
    match observed.state {
        Live::Stopped { reason } | Live::Failed { reason } => {
            Err(AgentError::Failed { call, message: format!("the capsule ended: {reason}") })
        }
        Live::Starting | Live::Parked | Live::Running | Live::Moving | Live::Paused | Live::Stopping => {
            Ok(())
        }
    }
}

/// A message of the agent; `None` (and a log line) when it breaks the contract.
pub(crate) fn readable(capsule: agent::Capsule) -> Option<Observed> {
    match Observed::try_from(capsule) {
        Ok(observed) => Some(observed),
        Err(error) => {
            tracing::warn!(%error, "a capsule of the host is ignored");
            None
        }
    }
}
