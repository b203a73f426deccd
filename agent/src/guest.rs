//! The client of envd: dialled from inside the capsule's network namespace, so that a capsule without egress has a
//! control path and no other process of the host can reach it.

use crate::{network::netns::Netns, vmm::machine::GuestNetwork};
use futures::Stream;
use hearth_proto::{
    metadata,
    wire::{
        envd::{
            ActivateReply, ActivateRequest, GrowDiskRequest, HealthReply, HealthRequest, PrepareRequest,
            envd_client::EnvdClient,
        },
        port::PortBytes,
        process::{ExecEvent, ExecRequest},
        run::{RunEvent, RunRequest, RunStatus, run_event},
    },
};

use hyper_util::rt::TokioIo;
use std::{
    fmt, io,
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{net::TcpSocket, sync::Semaphore, time::timeout};
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

/// A guest that was just restored answers within some tens of milliseconds; software emulation on a busy host within
/// a few seconds.
const ACTIVATE_DEADLINE: Duration = Duration::from_secs(20);
/// Starting and warming Python takes 6 s under software emulation.
const PREPARE_DEADLINE: Duration = Duration::from_secs(240);
/// Three cells that print a number.
const REHEARSAL_DEADLINE: Duration = Duration::from_secs(20);
/// A terabyte more takes seconds under software emulation.
const GROW_DEADLINE: Duration = Duration::from_secs(60);
const HEALTH_DEADLINE: Duration = Duration::from_secs(5);
/// One attempt to connect; a running guest takes 2 ms, under software emulation on a busy host some hundred.
const DIAL_DEADLINE: Duration = Duration::from_millis(700);
const DIAL_ATTEMPTS: usize = 8;
/// A message of ours: outputs come in chunks, results and artifacts are at most some MiB each.
const MESSAGE_BYTES_MAX: usize = 48 << 20;
const WINDOW_BYTES: u32 = 4 << 20;
/// Connections to ports of one capsule at the same time.
pub const PORTS_MAX: u32 = 64;
/// They share a connection of their own, so that nobody waits for one that is not read: what one may hold, times all.
const PORT_WINDOW_BYTES: u32 = 256 << 10;
/// Calls that are passed on to one service of a guest at the same time, on a connection of their own as well.
pub const RELAYED_MAX: u32 = 128;
/// What a stream of files may hold, and one of processes: HTTP/2 gives a connection up on which very many small frames are
/// not read, and what processes write comes in such.
const FILE_WINDOW_BYTES: u32 = 256 << 10;
const PROCESS_WINDOW_BYTES: u32 = 64 << 10;
/// More than all of them hold: that number of small frames grows with it.
const RELAY_WINDOW_BYTES: u32 = 256 << 20;
/// A file's bytes are sent in frames of this size: fewer wake-ups of a guest.
const FRAME_BYTES: u32 = 64 << 10;

/// Why a guest did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// It answered with an error.
    #[error("the guest refused: {}", .0.message())]
    Refused(Status),
    /// No answer in time.
    #[error("the guest did not answer `{0}` in time")]
    Deadline(&'static str),
    /// It cannot be dialled.
    #[error("the guest cannot be reached: {0}")]
    Unreachable(String),
    /// A throw-away run ended otherwise than it must.
    #[error("the rehearsal ended with {0}")]
    Rehearsal(&'static str),
    /// Its token is none.
    #[error("the guest's token: {0}")]
    Token(String),
    /// The host has no randomness to give.
    #[error("no randomness from the host: {0}")]
    Randomness(String),
}

impl From<Status> for GuestError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unavailable | Code::Unknown => Self::Unreachable(hearth_service::telemetry::chain(&status)),
            _ => Self::Refused(status),
        }
    }
}

/// Who the guest is to be.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Host name: the capsule's id.
    pub hostname: String,
    /// Default environment of what runs in it.
    pub env: std::collections::HashMap<String, String>,
}

/// A connection to one guest's envd. Clones share it; it dials again by itself.
#[derive(Debug, Clone)]
pub struct Guest {
    client: EnvdClient<InterceptedService<Channel, Credentials>>,
    ports: EnvdClient<InterceptedService<Channel, Credentials>>,
    /// Connections to ports that may still be made.
    pub(crate) port_places: Arc<Semaphore>,
    /// For calls of its `Processes` that are passed on.
    pub(crate) processes: Relayed,
    /// For calls of its `Files` that are passed on.
    pub(crate) files: Relayed,
    credentials: Credentials,
}

/// A connection for calls that are passed on unread. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Relayed {
    /// Gives each call the guest's token and the time.
    pub(crate) channel: InterceptedService<Channel, Credentials>,
    /// Calls that may still be made.
    pub(crate) places: Arc<Semaphore>,
}

/// What every call to a guest carries.
#[derive(Clone)]
pub(crate) struct Credentials {
    token: MetadataValue<Ascii>,
}

impl fmt::Debug for Credentials {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(metadata::TOKEN, self.token.clone());
        request.metadata_mut().insert(metadata::REALTIME_NS, MetadataValue::from(realtime_ns()));
        Ok(request)
    }
}

/// The host's clock in nanoseconds since the epoch.
fn realtime_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

fn random<const N: usize>() -> Result<[u8; N], GuestError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| GuestError::Randomness(error.to_string()))?;
    Ok(bytes)
}

/// The machine id of a guest: its own, and the same whenever it is activated.
fn machine_id(hostname: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(&Sha256::digest(format!("hearth machine-id {hostname}"))[..16])
}

/// Connects, with a fresh attempt when the guest lets one pass: TCP itself would repeat it only after a second, and a
/// booting guest answers nothing at first.
async fn dial(netns: Arc<Netns>) -> io::Result<TokioIo<tokio::net::TcpStream>> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..DIAL_ATTEMPTS {
        match timeout(DIAL_DEADLINE, dial_once(netns.clone())).await {
            Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
            Ok(Err(error)) => last = error,
            Err(_) => {}
        }
    }
    Err(last)
}

async fn dial_once(netns: Arc<Netns>) -> io::Result<tokio::net::TcpStream> {
    let socket = tokio::task::spawn_blocking(move || {
        netns.inside(|| {
            use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            Ok(socket(AddressFamily::Inet, SockType::Stream, flags, None)?)
        })
    })
    .await?
    .map_err(io::Error::other)?;
    let socket: OwnedFd = socket;
    // Made a moment ago and not connected, as `from_std_stream` asks.
    let socket = TcpSocket::from_std_stream(TcpStream::from(socket));
    socket.set_nodelay(true)?;
    let address = SocketAddr::from((GuestNetwork::GUEST, metadata::ENVD_PORT));
    socket.connect(address).await
}

impl Guest {
    /// A client of the guest in `netns`, which is told `token` when it is activated. Dials at the first call.
    pub fn new(netns: Arc<Netns>, token: &str) -> Result<Self, GuestError> {
        let token = MetadataValue::try_from(token).map_err(|error| GuestError::Token(error.to_string()))?;
        let connect = |stream: u32, all: u32| {
            let netns = netns.clone();
            Endpoint::from_static("http://envd.hearth")
                .initial_stream_window_size(stream)
                .initial_connection_window_size(all)
                .max_frame_size(FRAME_BYTES)
                .connect_with_connector_lazy(service_fn(move |_: Uri| dial(netns.clone())))
        };
        let channel = connect(WINDOW_BYTES, WINDOW_BYTES);
        let credentials = Credentials { token };
        let ports = connect(PORT_WINDOW_BYTES, PORT_WINDOW_BYTES * PORTS_MAX);
        let ports = EnvdClient::with_interceptor(ports, credentials.clone());
        let client = EnvdClient::with_interceptor(channel, credentials.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let port_places = Arc::new(Semaphore::new(PORTS_MAX as usize));
        let relayed = |window| Relayed {
            channel: InterceptedService::new(connect(window, RELAY_WINDOW_BYTES), credentials.clone()),
            places: Arc::new(Semaphore::new(RELAYED_MAX as usize)),
        };
        Ok(Self {
            client,
            ports,
            port_places,
            processes: relayed(PROCESS_WINDOW_BYTES),
            files: relayed(FILE_WINDOW_BYTES),
            credentials,
        })
    }

    /// A token for one life of a guest: a restore gives it another, and a capture forgets it inside the guest.
    pub fn new_token() -> Result<String, GuestError> {
        Ok(hex::encode(random::<32>()?))
    }

    /// Makes a restored (or freshly booted) guest somebody of its own: entropy, clock, identity, token, thaw, PRNGs.
    /// Until this succeeds the guest serves nothing.
    pub async fn activate(&self, identity: Identity) -> Result<ActivateReply, GuestError> {
        let token = self.credentials.token.to_str().map_err(|error| GuestError::Token(error.to_string()))?;
        let request = ActivateRequest {
            entropy: random::<64>()?.to_vec(),
            realtime_ns: realtime_ns(),
            machine_id: machine_id(&identity.hostname),
            hostname: identity.hostname,
            token: token.to_owned(),
            env: identity.env,
        };
        let mut client = self.client.clone();
        within("Activate", ACTIVATE_DEADLINE, client.activate(request)).await
    }

    /// Runs throw-away cells of `language` on the way of every run, so that the first real one is fast: after a restore
    /// software emulation has to translate all code again. Leaves no trace that user code can see.
    pub async fn rehearse(&self, language: &str) -> Result<(), GuestError> {
        let request = RunRequest {
            language: language.to_owned(),
            timeout_ms: REHEARSAL_DEADLINE.as_millis() as u64,
            artifacts: true,
            rehearsal: true,
            ..RunRequest::default()
        };
        let run = async {
            let mut events = self.execute(request).await?;
            while let Some(event) = events.message().await? {
                if let Some(run_event::Event::End(end)) = event.event {
                    return match end.status() {
                        RunStatus::Ok => Ok(()),
                        status => Err(GuestError::Rehearsal(status.as_str_name())),
                    };
                }
            }
            Err(GuestError::Unreachable("the rehearsal's stream ended early".to_owned()))
        };
        timeout(REHEARSAL_DEADLINE, run).await.unwrap_or(Err(GuestError::Deadline("Execute")))
    }

    /// Warms the contexts and freezes the guest for a snapshot.
    pub async fn prepare(&self, languages: Vec<String>) -> Result<(), GuestError> {
        let mut client = self.client.clone();
        within("Prepare", PREPARE_DEADLINE, client.prepare(PrepareRequest { languages })).await.map(drop)
    }

    /// Grows the file system of the guest's disk to the size that the disk was given.
    pub async fn grow_disk(&self, bytes: u64) -> Result<(), GuestError> {
        let mut client = self.client.clone();
        within("GrowDisk", GROW_DEADLINE, client.grow_disk(GrowDiskRequest { bytes })).await.map(drop)
    }

    /// Asks whether the guest is alive; sets its clock on the way.
    pub async fn health(&self) -> Result<HealthReply, GuestError> {
        let mut client = self.client.clone();
        within("Health", HEALTH_DEADLINE, client.health(HealthRequest {})).await
    }

    /// Runs a program. Dropping the stream kills it.
    pub async fn exec(&self, request: ExecRequest) -> Result<Streaming<ExecEvent>, GuestError> {
        Ok(self.client.clone().exec(request).await?.into_inner())
    }

    /// Connects to a port that the first message names. Dropping the stream closes the connection.
    pub async fn connect_port(
        &self,
        bytes: impl Stream<Item = PortBytes> + Send + 'static,
    ) -> Result<Streaming<PortBytes>, GuestError> {
        Ok(self.ports.clone().connect_port(bytes).await?.into_inner())
    }

    /// Runs code. Dropping the stream interrupts it.
    pub async fn execute(&self, request: RunRequest) -> Result<Streaming<RunEvent>, GuestError> {
        Ok(self.client.clone().execute(request).await?.into_inner())
    }
}

async fn within<T>(
    what: &'static str,
    deadline: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, GuestError> {
    match timeout(deadline, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(GuestError::Deadline(what)),
    }
}
