//! One connection of the agent's: counted, kept alive, and closed from our side when its life is over.

use nix::sys::socket::{setsockopt, sockopt};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// Open connections at the same time. The agent needs one or two.
const CONNECTIONS_MAX: usize = 64;
/// A silent peer is asked after this many seconds, and …
const KEEPALIVE_IDLE_S: u32 = 30;
/// … again after so many, …
const KEEPALIVE_INTERVAL_S: u32 = 10;
/// … this often, before the connection counts as dead.
const KEEPALIVE_PROBES: u32 = 3;

/// Counts the open connections and can close them.
pub struct Connections {
    places: Arc<Semaphore>,
    life: CancellationToken,
}

impl Connections {
    /// None yet.
    pub fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), life: CancellationToken::new() }
    }

    /// Waits until one more connection may be open. The semaphore is never closed, so `None` does not happen.
    pub async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Makes every open connection end as if its peer had closed it.
    pub fn close_all(&mut self) {
        std::mem::take(&mut self.life).cancel();
    }

    /// Takes a new one in.
    pub fn admit(&self, stream: TcpStream, place: Option<OwnedSemaphorePermit>) -> Connection {
        if let Err(error) = tune(&stream) {
            tracing::warn!(%error, "a connection keeps its default options");
        }
        Connection { stream, closed: Box::pin(self.life.clone().cancelled_owned()), _place: place }
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    Ok(())
}

/// A connection that reads as ended once its life is over.
pub struct Connection {
    stream: TcpStream,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
