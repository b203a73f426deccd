//! A client of Firecracker's HTTP API (Firecracker's src/firecracker/swagger/firecracker.yaml, 1.12), as far as it is
//! used: one connection per call, so that a call that is given up leaves nothing half read behind.

use hyper::{
    Method, Request, StatusCode,
    body::{Body, Incoming},
    client::conn::http1,
    header::CONTENT_TYPE,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    future::poll_fn,
    io,
    os::fd::{AsRawFd, OwnedFd},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

/// Longest answer that is read: they are small objects.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Calls that only set something up take milliseconds; a busy host needs more.
const DEADLINE: Duration = Duration::from_secs(20);
/// A full snapshot writes all of guest memory.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(300);
/// Nothing announces that a fresh Firecracker listens; it does after some milliseconds.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// The API socket's name in the jail's root.
pub const SOCKET: &str = "api.sock";

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// Firecracker's end is closed: it has ended, or is about to.
    #[error("Firecracker closed its API socket")]
    Closed,
    /// No answer in time.
    #[error("Firecracker did not answer `{0}` in time")]
    Deadline(&'static str),
    /// It refused.
    #[error("Firecracker refused `{call}`: {reason}")]
    Refused {
        /// The call.
        call: &'static str,
        /// Its words.
        reason: String,
    },
    /// Not what its API says.
    #[error("Firecracker's answer to `{call}`: {reason}")]
    Protocol {
        /// The call.
        call: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// Where a Firecracker is called. Clones share it.
#[derive(Debug, Clone)]
pub struct Api {
    /// The jail's root. Reached by its descriptor: the path would be too long for a socket's address.
    root: Arc<OwnedFd>,
}

/// `GET /`.
#[derive(Debug, Clone, Deserialize)]
pub struct InstanceInfo {
    /// Its version, without a `v`.
    pub vmm_version: String,
    /// `Not started`, `Running`, `Paused`.
    pub state: String,
}

/// `PUT /machine-config`.
#[derive(Debug, Clone, Serialize)]
pub struct MachineConfig {
    /// Virtual CPUs.
    pub vcpu_count: u32,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
    /// Two threads per core.
    pub smt: bool,
    /// Keep KVM's log of written pages.
    pub track_dirty_pages: bool,
}

/// `PUT /boot-source`.
#[derive(Debug, Clone, Serialize)]
pub struct BootSource {
    /// Uncompressed kernel.
    pub kernel_image_path: &'static str,
    /// Initial RAM disk.
    pub initrd_path: &'static str,
    /// The kernel's command line.
    pub boot_args: String,
}

/// `PUT /drives/{drive_id}`.
#[derive(Debug, Clone, Serialize)]
pub struct Drive {
    /// Its name.
    pub drive_id: &'static str,
    /// The file, as seen in the jail.
    pub path_on_host: &'static str,
    /// Ours are found by the initramfs.
    pub is_root_device: bool,
    /// Not to be written.
    pub is_read_only: bool,
    /// `Unsafe` (flushes are not passed on) or `Writeback`.
    pub cache_type: &'static str,
    /// `Sync` or `Async`.
    pub io_engine: &'static str,
}

/// `PATCH /drives/{drive_id}`: another file behind the drive of a stopped machine.
#[derive(Debug, Clone, Serialize)]
pub struct DriveChange {
    /// Its name.
    pub drive_id: &'static str,
    /// The file, as seen in the jail.
    pub path_on_host: &'static str,
}

/// `PUT /network-interfaces/{iface_id}`.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkInterface {
    /// Its name.
    pub iface_id: &'static str,
    /// The guest's MAC address.
    pub guest_mac: String,
    /// The tap, in the jail's network namespace.
    pub host_dev_name: &'static str,
}

/// `PUT /entropy`: no options of ours.
#[derive(Debug, Clone, Serialize)]
struct Entropy {}

#[derive(Debug, Clone, Serialize)]
struct Action {
    action_type: &'static str,
}

#[derive(Debug, Clone, Serialize)]
struct VmState {
    state: &'static str,
}

/// `PUT /snapshot/create`.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotCreate {
    /// `Full` or `Diff`.
    pub snapshot_type: &'static str,
    /// Where the device state goes.
    pub snapshot_path: &'static str,
    /// Where guest memory goes.
    pub mem_file_path: &'static str,
}

/// Where a restored guest's memory comes from.
#[derive(Debug, Clone, Serialize)]
pub struct MemoryBackend {
    /// `Uffd` or `File`.
    pub backend_type: &'static str,
    /// The pager's socket, or the file.
    pub backend_path: &'static str,
}

/// `PUT /snapshot/load`.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotLoad {
    /// The device state.
    pub snapshot_path: &'static str,
    /// Guest memory.
    pub mem_backend: MemoryBackend,
    /// Keep KVM's log of written pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// The same, before 1.13.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_diff_snapshots: Option<bool>,
    /// Let the vCPUs run at once.
    pub resume_vm: bool,
    /// The guest's clock follows the host's (1.16 and newer).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_realtime: Option<bool>,
}

/// The body of a refusal.
#[derive(Debug, Deserialize)]
struct Fault {
    fault_message: String,
}

impl Api {
    /// The API of a Firecracker whose jail's root is `root`.
    pub fn new(root: Arc<OwnedFd>) -> Self {
        Self { root }
    }

    /// Waits until it listens, and asks what it is. `is_alive` ends the wait early.
    pub async fn greet(
        &self,
        deadline: Duration,
        is_alive: impl Fn() -> bool,
    ) -> Result<InstanceInfo, ApiError> {
        let start = Instant::now();
        while self.connect().await.is_err() {
            if !is_alive() {
                return Err(ApiError::Closed);
            }
            if deadline < start.elapsed() {
                return Err(ApiError::Deadline("its first answer"));
            }
            sleep(CONNECT_PAUSE).await;
        }
        let text = self.call(Method::GET, "/", "describe", None::<&()>, DEADLINE).await?;
        read("describe", &text)
    }

    /// Sets vCPUs and memory.
    pub async fn machine_config(&self, config: &MachineConfig) -> Result<(), ApiError> {
        self.put("/machine-config", "machine-config", config).await
    }

    /// Sets what is booted.
    pub async fn boot_source(&self, source: &BootSource) -> Result<(), ApiError> {
        self.put("/boot-source", "boot-source", source).await
    }

    /// Adds a drive.
    pub async fn drive(&self, drive: &Drive) -> Result<(), ApiError> {
        self.put(&format!("/drives/{}", drive.drive_id), "drives", drive).await
    }

    /// Puts another file behind a drive.
    pub async fn change_drive(&self, change: &DriveChange) -> Result<(), ApiError> {
        let path = format!("/drives/{}", change.drive_id);
        self.call(Method::PATCH, &path, "drives", Some(change), DEADLINE).await.map(drop)
    }

    /// Adds a network interface.
    pub async fn network_interface(&self, interface: &NetworkInterface) -> Result<(), ApiError> {
        let path = format!("/network-interfaces/{}", interface.iface_id);
        self.put(&path, "network-interfaces", interface).await
    }

    /// Adds a source of randomness.
    pub async fn entropy(&self) -> Result<(), ApiError> {
        self.put("/entropy", "entropy", &Entropy {}).await
    }

    /// Boots.
    pub async fn start(&self) -> Result<(), ApiError> {
        self.put("/actions", "InstanceStart", &Action { action_type: "InstanceStart" }).await
    }

    /// Stops the vCPUs; returns once they stand still.
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.state("pause", "Paused").await
    }

    /// Lets the vCPUs run.
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.state("resume", "Resumed").await
    }

    /// Writes device state and guest memory of a stopped machine.
    pub async fn create_snapshot(&self, create: &SnapshotCreate) -> Result<(), ApiError> {
        let path = "/snapshot/create";
        self.call(Method::PUT, path, "snapshot/create", Some(create), SNAPSHOT_DEADLINE).await.map(drop)
    }

    /// Loads a snapshot into a Firecracker that has done nothing yet.
    pub async fn load_snapshot(&self, load: &SnapshotLoad) -> Result<(), ApiError> {
        self.put("/snapshot/load", "snapshot/load", load).await
    }

    async fn state(&self, call: &'static str, state: &'static str) -> Result<(), ApiError> {
        self.call(Method::PATCH, "/vm", call, Some(&VmState { state }), DEADLINE).await.map(drop)
    }

    async fn put(&self, path: &str, call: &'static str, body: &impl Serialize) -> Result<(), ApiError> {
        self.call(Method::PUT, path, call, Some(body), DEADLINE).await.map(drop)
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", self.root.as_raw_fd())).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        call: &'static str,
        body: Option<&impl Serialize>,
        deadline: Duration,
    ) -> Result<Vec<u8>, ApiError> {
        let protocol = |reason: String| ApiError::Protocol { call, reason };
        let body = body.map_or(Ok(String::new()), serde_json::to_string);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", "localhost")
            .header("Accept", "application/json")
            .header(CONTENT_TYPE, "application/json")
            .body(body.map_err(|error| protocol(error.to_string()))?)
            .map_err(|error| protocol(error.to_string()))?;
        timeout(deadline, self.exchange(request, call)).await.map_err(|_| ApiError::Deadline(call))?
    }

    async fn exchange(&self, request: Request<String>, call: &'static str) -> Result<Vec<u8>, ApiError> {
        let stream = self.connect().await.map_err(|_| ApiError::Closed)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|_| ApiError::Closed)?;
        let answer = async move {
            let response = sender.send_request(request).await.map_err(|_| ApiError::Closed)?;
            let status = response.status();
            let body = collect(response.into_body(), call).await?;
            Ok((status, body))
        };
        // The connection ends by itself when the answer is complete and its sender dropped; how does not matter then.
        let (answer, _) = futures::future::join(answer, connection).await;
        let (status, body) = answer?;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(body),
            status => {
                let reason = serde_json::from_slice::<Fault>(&body)
                    .map_or_else(|_| format!("status {status}"), |fault| fault.fault_message);
                Err(ApiError::Refused { call, reason })
            }
        }
    }
}

/// Reads a body to its end, within bounds.
async fn collect(body: Incoming, call: &'static str) -> Result<Vec<u8>, ApiError> {
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|_| ApiError::Closed)?;
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(data);
        }
        if ANSWER_BYTES_MAX < bytes.len() {
            return Err(ApiError::Protocol { call, reason: "over 64 KiB".to_owned() });
        }
    }
    Ok(bytes)
}

fn read<T: DeserializeOwned>(call: &'static str, bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| ApiError::Protocol { call, reason: error.to_string() })
}

#[cfg(test)]
mod tests;
