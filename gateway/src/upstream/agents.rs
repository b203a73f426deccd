//! The agents' channels: a bounded pool per host. A call checks a channel out for as long as its stream lives, so the
//! bytes of one call never stand in the way of another's.

use super::{UpstreamError, answer, request, stream::Events};
use deadpool::managed::{self, Object, Pool, QueueMode, RecycleError, RecycleResult};
use hearth_proto::{
    id::CapsuleId,
    wire::{
        agent::{ExecCall, ExecuteCall, ExecuteEvent, GetConsoleRequest, agent_client::AgentClient},
        pool::HostRef,
        process::ExecEvent,
    },
};
use hearth_service::socket::{self, EndpointError, MESSAGE_BYTES_MAX};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tonic::{Code, transport::Channel};

/// How long a call waits for a channel when all are in use.
const WAIT: Duration = Duration::from_secs(5);
/// For reading at most a MiB from a file.
const CONSOLE_DEADLINE: Duration = Duration::from_secs(10);

/// Channels to the agents of all hosts.
pub(crate) struct Agents {
    /// Most channels per host.
    limit: usize,
    /// By endpoint. As many as pool-manager has hosts.
    pools: Mutex<HashMap<String, Pool<Dialer>>>,
}

/// A channel of the pool, checked out for one call.
pub(crate) type Checked = Object<Dialer>;

/// One connection to an agent.
pub(crate) struct AgentChannel {
    channel: Channel,
    broken: bool,
}

impl AgentChannel {
    /// The channel itself, for a client of any of the agent's services.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    fn agent(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The channel is not used again when the agent went away on it.
    pub(crate) fn judge(&mut self, status: &tonic::Status) {
        self.broken |= matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal);
    }
}

/// Makes the channels of one host.
pub(crate) struct Dialer {
    endpoint: String,
}

impl managed::Manager for Dialer {
    type Type = AgentChannel;
    type Error = EndpointError;

    async fn create(&self) -> Result<AgentChannel, EndpointError> {
        Ok(AgentChannel { channel: socket::channel(&self.endpoint)?, broken: false })
    }

    async fn recycle(
        &self,
        channel: &mut AgentChannel,
        _: &managed::Metrics,
    ) -> RecycleResult<EndpointError> {
        if channel.broken { Err(RecycleError::message("the agent went away")) } else { Ok(()) }
    }
}

/// How full one host's pool is.
pub(crate) struct Fullness {
    pub(crate) open: usize,
    pub(crate) idle: usize,
    pub(crate) waiting: usize,
}

impl Agents {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, pools: Mutex::new(HashMap::new()) }
    }

    /// Runs code in a capsule. A parked capsule is claimed by this call. Dropping the events interrupts the run.
    /// `deadline` is for the whole call; the agent gives up on what has not begun by then.
    pub(crate) async fn execute(
        &self,
        host: &HostRef,
        call: ExecuteCall,
        request_id: &str,
        deadline: Duration,
    ) -> Result<Events<ExecuteEvent>, UpstreamError> {
        let channel = self.checkout(host).await?;
        let mut client = channel.agent();
        let opened = answer(client.execute(request(call, request_id, deadline)), deadline).await;
        Events::opened(channel, opened)
    }

    /// Runs a command in a capsule. Dropping the events kills its processes.
    pub(crate) async fn exec(
        &self,
        host: &HostRef,
        call: ExecCall,
        request_id: &str,
        deadline: Duration,
    ) -> Result<Events<ExecEvent>, UpstreamError> {
        let channel = self.checkout(host).await?;
        let mut client = channel.agent();
        let opened = answer(client.exec(request(call, request_id, deadline)), deadline).await;
        Events::opened(channel, opened)
    }

    /// What a capsule's guest wrote to its console.
    pub(crate) async fn console(
        &self,
        host: &HostRef,
        capsule: CapsuleId,
        request_id: &str,
    ) -> Result<Vec<u8>, UpstreamError> {
        let mut channel = self.checkout(host).await?;
        let message = GetConsoleRequest { capsule_id: capsule.to_string() };
        let mut client = channel.agent();
        let called = client.get_console(request(message, request_id, CONSOLE_DEADLINE));
        let answered = answer(called, CONSOLE_DEADLINE).await;
        if let Err(UpstreamError::Status(status)) = &answered {
            channel.judge(status);
        }
        answered.map(|reply| reply.console)
    }

    /// How full all pools together are.
    pub(crate) fn fullness(&self) -> Fullness {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Fullness { open: 0, idle: 0, waiting: 0 };
        for status in pools.values().map(Pool::status) {
            all.open += status.size;
            all.idle += status.available;
            all.waiting += status.waiting;
        }
        all
    }

    /// A channel to a host for one call. Waits a bounded time for a free one.
    pub(crate) async fn checkout(&self, host: &HostRef) -> Result<Checked, UpstreamError> {
        let pool = self.pool_of(&host.endpoint)?;
        pool.get().await.map_err(|error| match error {
            managed::PoolError::Backend(error) => UpstreamError::Endpoint(error),
            managed::PoolError::Timeout(_)
            | managed::PoolError::Closed
            | managed::PoolError::NoRuntimeSpecified
            | managed::PoolError::PostCreateHook(_) => UpstreamError::Busy,
        })
    }

    fn pool_of(&self, endpoint: &str) -> Result<Pool<Dialer>, UpstreamError> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(endpoint) {
            return Ok(pool.clone());
        }
        let pool = Pool::builder(Dialer { endpoint: endpoint.to_owned() })
            .max_size(self.limit)
            .wait_timeout(Some(WAIT))
            // The channel that was used last is the most likely to be connected.
            .queue_mode(QueueMode::Lifo)
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            // Only possible without a runtime, and one is set above.
            .map_err(|_| UpstreamError::Busy)?;
        pools.insert(endpoint.to_owned(), pool.clone());
        Ok(pool)
    }
}
