//! gRPC over Unix sockets of mode 0600: on one host the parts talk like this, because a loopback port of the agent
//! would be root for every local user.

use hyper_util::rt::TokioIo;
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// Scheme of an endpoint that is a Unix socket's path.
const UNIX: &str = "unix:";

/// Largest gRPC message, in both directions. Files and outputs are streamed in smaller pieces.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Only `unix:/absolute/path` is known.
    #[error("endpoint `{0}` is not `unix:/absolute/path`")]
    Form(String),
}

/// Binds `path` with mode 0600, replacing a socket that nobody listens on any more.
/// Another kind of file there, or a live listener, is an error.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("another process listens on {}", path.display()),
                ));
            }
            fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} exists and is not a socket", path.display()),
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The endpoint text of a socket path.
pub fn endpoint(path: &Path) -> String {
    format!("{UNIX}{}", path.display())
}

/// A channel to `endpoint` that connects at the first call and again after the peer was away.
pub fn channel(endpoint: &str) -> Result<Channel, EndpointError> {
    let path = endpoint
        .strip_prefix(UNIX)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .ok_or_else(|| EndpointError::Form(endpoint.to_owned()))?;
    // The URI is only the HTTP/2 authority; the connector below decides where to.
    let channel = Endpoint::from_static("http://hearth.local")
        .connect_timeout(Duration::from_secs(2))
        .connect_with_connector_lazy(service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }));
    Ok(channel)
}
