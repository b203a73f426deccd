//! A client's connection, with two things that the HTTP library does not offer: its own refusals of what is no HTTP get
//! the error shape of the API, and it is known whether output waits for the client.

use hearth_proto::error::ErrorCode;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// More than such a refusal has. Output of another size is not looked at.
const HEAD_BYTES_MAX: usize = 512;

/// Whether output waits for the client to take it. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Blocked(Arc<AtomicBool>);

impl Blocked {
    /// Whether output waits now.
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The connection.
pub(super) struct Border {
    stream: TcpStream,
    blocked: Blocked,
    /// What is written in place of a refusal of the HTTP library, and how much of it is written.
    refusal: Option<(Vec<u8>, usize)>,
}

impl Border {
    /// Takes over a connection.
    pub(super) fn new(stream: TcpStream) -> (Self, Blocked) {
        let blocked = Blocked::default();
        (Self { stream, blocked: blocked.clone(), refusal: None }, blocked)
    }

    /// Writes our refusal in place of `length` bytes of the library's.
    fn poll_refuse(&mut self, context: &mut Context<'_>, length: usize) -> Poll<io::Result<usize>> {
        while let Some((bytes, at)) = &mut self.refusal {
            let rest = bytes.get(*at..).unwrap_or_default();
            if rest.is_empty() {
                self.refusal = None;
                break;
            }
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => *at += written,
            }
        }
        Poll::Ready(Ok(length))
    }
}

impl AsyncRead for Border {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Border {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first: &[u8] = slices.first().map_or(&[], |slice| slice);
        if self.refusal.is_none() {
            self.refusal = refusal(first).map(|bytes| (bytes, 0));
        }
        let written = if self.refusal.is_some() {
            self.poll_refuse(context, first.len())
        } else {
            Pin::new(&mut self.stream).poll_write_vectored(context, slices)
        };
        self.blocked.0.store(written.is_pending(), Ordering::Relaxed);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// (pure) Our text for a refusal that the HTTP library (hyper 1, `proto/h1/role.rs`, `on_error`) writes by itself: an
/// empty 400, 414 or 431. Answers of ours are told from them by their `x-request-id`.
fn refusal(output: &[u8]) -> Option<Vec<u8>> {
    if output.len() > HEAD_BYTES_MAX {
        return None;
    }
    let head = std::str::from_utf8(output).ok()?.strip_suffix("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.").and_then(|line| line.get(2..))?;
    let message = match status.get(..3)? {
        "400" => "this is not a valid HTTP/1.1 request: look at request line, headers and body length",
        "414" => "the path is too long",
        "431" => "the headers are too long, or more than 100",
        _ => return None,
    };
    let is_own = |line: &str| line.to_ascii_lowercase().starts_with("x-request-id:");
    if lines.clone().any(is_own) || !lines.any(|line| line == "content-length: 0") {
        return None;
    }
    let code = ErrorCode::InvalidRequest.as_str();
    let body = serde_json::json!({ "error": { "code": code, "message": message } }).to_string();
    let id = uuid::Uuid::now_v7().simple();
    Some(
        format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             x-request-id: req-{id}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_librarys_empty_refusals_are_replaced() {
        let empty =
            "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let ours = String::from_utf8(refusal(empty.as_bytes()).expect("replaced")).expect("text");
        let (head, body) = ours.split_once("\r\n\r\n").expect("a body");
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["error"]["code"], "invalid_request");
        for other in [
            "HTTP/1.1 400 Bad Request\r\nx-request-id: r\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 400 ",
            "",
        ] {
            assert_eq!(refusal(other.as_bytes()), None, "{other}");
        }
    }
}
