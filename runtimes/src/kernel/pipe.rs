//! The reading end of a kernel's stdout or stderr pipe.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};
use tokio::net::unix::pipe::Receiver;

/// What a pipe holds by default (pipe(7)): no more than this was written before a given moment.
const PIPE_BYTES: usize = 64 << 10;

/// One pipe. Writers are the kernel and everything it started.
#[derive(Debug)]
pub(super) struct Pipe {
    receiver: Receiver,
    /// No writer is left.
    ended: bool,
}

impl Pipe {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { receiver: Receiver::from_owned_fd(fd)?, ended: false })
    }

    /// The next bytes; never completes when no writer is left.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn read(&mut self) -> io::Result<Vec<u8>> {
        while !self.ended {
            self.receiver.readable().await?;
            let mut buffer = vec![0; PIPE_BYTES];
            match self.receiver.try_read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    buffer.truncate(count);
                    return Ok(buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        std::future::pending().await
    }

    /// Takes what was written before now; a writer that goes on cannot keep us here.
    pub(super) fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        let mut buffer = [0; 4096];
        let mut left = PIPE_BYTES;
        while left > 0 && !self.ended {
            // The runtime may not have heard yet that the pipe is readable, so ask the kernel itself.
            match read_now(&self.receiver, &mut buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    take(&buffer[..count]);
                    left = left.saturating_sub(count);
                }
                Err(_) => return,
            }
        }
    }
}

/// Reads a non-blocking descriptor without regard to the runtime's idea of its readiness.
pub(super) fn read_now(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::unistd::read(fd, buffer)?)
}
