//! Connections: what is no HTTP is refused in the one shape, and a stop takes as long as the requests under way.

use crate::testbed::Testbed;
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Far below the grace of ten seconds, far above what a busy machine needs.
const SOON: Duration = Duration::from_secs(6);

async fn connected(bed: &Testbed, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(bed.running.address()).await.expect("connected");
    stream.write_all(bytes).await.expect("written");
    stream
}

/// Reads to the end: head and body.
async fn rest(mut stream: TcpStream) -> (String, String) {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
    // A connection that is closed with unread input is reset after its answer.
    let _ = read.expect("the connection to end");
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn what_is_no_http_is_refused_in_the_error_shape() {
    let bed = Testbed::start().await;
    let path = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(70_000));
    let many: String = (0..150).map(|number| format!("x-{number}: a\r\n")).collect();
    let many = format!("GET /health HTTP/1.1\r\nhost: x\r\n{many}\r\n");
    let long = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "a".repeat(1_000_000));
    let cases: [(&[u8], u16, &str); 7] = [
        (b"NONSENSE\r\n\r\n", 400, "HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n", 400, "HTTP/1.1"),
        (b"POST /v1/execute HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n", 400, "body length"),
        (b"POST /v1/execute HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n", 400, "body length"),
        (path.as_bytes(), 414, "path"),
        (many.as_bytes(), 431, "headers"),
        (long.as_bytes(), 431, "headers"),
    ];
    for (bytes, status, says) in cases {
        let shown = String::from_utf8_lossy(bytes.get(..40).unwrap_or(bytes)).into_owned();
        let mut stream = TcpStream::connect(bed.running.address()).await.expect("connected");
        // The gateway may refuse before it has read everything.
        let _ = stream.write_all(bytes).await;
        let (head, body) = rest(stream).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {head}");
        assert!(head.contains("x-request-id: req-"), "{shown}: {head}");
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{shown}: {body}"));
        assert_eq!(body["error"]["code"], "invalid_request", "{shown}");
        assert!(body["error"]["message"].as_str().is_some_and(|text| text.contains(says)), "{shown}: {body}");
    }
}

#[tokio::test]
async fn connections_without_a_request_do_not_hold_the_stop() {
    let bed = Testbed::start().await;
    let idle = bed.get("/health").send().await.expect("an answer");
    assert_eq!(idle.status(), 200);
    let _kept = idle.bytes().await.expect("a body");
    let _silent = connected(&bed, b"").await;
    let _half_a_head = connected(&bed, b"POST /v1/execute HTTP/1.1\r\nhost:").await;
    let mut second = connected(&bed, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut answer = [0; 12];
    second.read_exact(&mut answer).await.expect("an answer");
    second.write_all(b"GET /hea").await.expect("written");
    let begin = Instant::now();
    bed.stop().await;
    assert!(begin.elapsed() < SOON, "the stop took {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_request_under_way_is_answered_during_the_stop() {
    let bed = Testbed::start_with(&["--max-requests=1"]).await;
    let head = format!(
        "POST /v1/execute HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-length: 10\r\n\r\n{{",
        bed.key()
    );
    let mut stream = connected(&bed, head.as_bytes()).await;
    // It has the only place now, so it is under way.
    crate::testbed::until(&bed, "no_capacity").await;
    bed.shutdown.begin();
    let mut closed = TcpStream::connect(bed.running.address()).await;
    while closed.is_ok() {
        closed = TcpStream::connect(bed.running.address()).await;
    }
    // Longer than what is no request would be kept.
    tokio::time::timeout(Duration::from_millis(2500), stream.readable()).await.expect_err("closed too early");
    stream.write_all(br#""code":1}"#).await.expect("written");
    let (head, body) = rest(stream).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert!(body.contains("code: expected a string"), "{body}");
    bed.stop().await;
}
