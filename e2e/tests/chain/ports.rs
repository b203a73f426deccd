//! Services inside capsules, reached through the gateway.

use crate::folder;
use futures::{SinkExt, StreamExt};
use hearth_e2e::service::TestService;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

/// HTTP with a redirect, headers that are told back, a slow stream of events and a WebSocket that echoes; on localhost.
const SERVER: &str = r#"
import asyncio, base64, hashlib, json

async def echo(reader, writer, key):
    accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
    while True:
        head = await reader.readexactly(2)
        size = head[1] & 127
        if size == 126: size = int.from_bytes(await reader.readexactly(2), "big")
        elif size == 127: size = int.from_bytes(await reader.readexactly(8), "big")
        mask = await reader.readexactly(4)
        data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(await reader.readexactly(size)))
        length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
        writer.write(bytes([head[0]]) + length + data)
        await writer.drain()
        if head[0] & 15 == 8:
            return

async def serve(reader, writer):
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = lines[0].split(" ")[1]
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if ": " in line)}
        body = b""
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("upgrade") == "websocket":
            return await echo(reader, writer, headers["sec-websocket-key"])
        if path == "/events":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(3):
                event = b"data: %d\n\n" % number
                writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                await writer.drain()
                await asyncio.sleep(0.4)
            writer.write(b"0\r\n\r\n")
        elif path == "/moved":
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://localhost:8765/there\r\nContent-Length: 0\r\n\r\n")
        else:
            told = json.dumps({"path": path, "headers": headers, "body": body.decode()}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(told), told))
        await writer.drain()
    finally:
        writer.close()

async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", 8765) as server:
        await server.serve_forever()

asyncio.run(main())
"#;

/// A service with a capsule whose port 8765 answers.
async fn serving(dir: &std::path::Path, create: serde_json::Value) -> (TestService, String) {
    let service = TestService::start(dir, &[("HEARTH_POOL_TARGET", "0")]).await.unwrap();
    let made = service.post("/v1/capsules", &create).await.unwrap();
    assert_eq!(made.status, 201, "{made:?}");
    let id = made.text("/id").to_owned();
    let path = format!("/v1/capsules/{id}");
    let file = json!({ "path": "/srv/server.py", "content": SERVER });
    assert_eq!(service.post(&format!("{path}/files/write"), &file).await.unwrap().status, 204);
    let start = json!({ "cmd": "python3", "args": ["/srv/server.py"], "background": true, "tag": "server" });
    assert_eq!(service.post(&format!("{path}/exec"), &start).await.unwrap().status, 202);
    let begun = Instant::now();
    while service.get(&format!("{path}/ports/8765/")).await.unwrap().status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the server does not answer");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (service, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn http_events_and_web_sockets_pass_by_path_and_by_host_name() {
    let dir = folder();
    let (service, id) = serving(dir.path(), json!({})).await;
    let at = |rest: &str| format!("{}/v1/capsules/{id}/ports/8765{rest}", service.url);
    let http =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let authority = service.url.strip_prefix("http://").unwrap().replace("127.0.0.1", "localhost");
    let host = format!("8765-{id}.{authority}");

    // Raw paths and bodies arrive as they were sent, credentials do not.
    let post = http.post(at("/a%2Fb//c?q=%20x")).header("x-api-key", &service.key);
    let told = post.header("authorization", "token mine").body("hello").send().await.unwrap();
    let told: serde_json::Value = told.json().await.unwrap();
    assert_eq!((&told["path"], &told["body"]), (&json!("/a%2Fb//c?q=%20x"), &json!("hello")));
    assert_eq!(told["headers"]["host"], "localhost:8765");
    assert_eq!(told["headers"]["authorization"], "token mine");
    assert!(!told.to_string().contains(&service.key), "{told}");

    let bearer = format!("Bearer {}", service.key);
    let by_host = http.get(format!("{}/x", service.url)).header("host", &host);
    let told: serde_json::Value =
        by_host.header("authorization", &bearer).send().await.unwrap().json().await.unwrap();
    assert_eq!((&told["path"], &told["headers"]["x-forwarded-host"]), (&json!("/x"), &json!(host)));
    assert_eq!(told["headers"].get("authorization"), None);

    let moved = http.get(at("/moved")).header("x-api-key", &service.key).send().await.unwrap();
    assert_eq!(moved.headers()["location"], format!("/v1/capsules/{id}/ports/8765/there").as_str());

    // Events come one by one, not all at the end.
    let events = http.get(at("/events")).header("x-api-key", &service.key).send().await.unwrap();
    let (begun, mut events) = (Instant::now(), events.bytes_stream());
    let first = events.next().await.unwrap().unwrap();
    assert_eq!(&first[..], b"data: 0\n\n");
    let rest: Vec<u8> = events.map(|piece| piece.unwrap().to_vec()).concat().await;
    assert_eq!(rest, b"data: 1\n\ndata: 2\n\n");
    assert!(begun.elapsed() > Duration::from_millis(700), "the events came all at once");

    let mut request = at("/ws").replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("x-api-key", service.key.parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    for size in [0, 5, 200, 60_000] {
        let message = Message::binary(vec![7; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();

    let nobody = service.get(&format!("/v1/capsules/{id}/ports/9/")).await.unwrap();
    assert_eq!((nobody.status, nobody.text("/error/code")), (502, "agent_error"), "{nobody:?}");
    let envd = service.get(&format!("/v1/capsules/{id}/ports/49983/")).await.unwrap();
    assert_eq!((envd.status, envd.text("/error/code")), (400, "invalid_request"), "{envd:?}");
    service.delete(&format!("/v1/capsules/{id}")).await.unwrap();
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_private_until_they_are_opened_and_a_token_opens_them_too() {
    let dir = folder();
    let (service, id) = serving(dir.path(), json!({ "auto_resume": true })).await;
    let path = format!("/v1/capsules/{id}");
    let url = format!("{}{path}/ports/8765/", service.url);
    let http =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let status =
        |request: reqwest::RequestBuilder| async move { request.send().await.unwrap().status().as_u16() };
    assert_eq!(status(http.get(&url)).await, 401);
    assert_eq!(status(http.get(&url).header("x-api-key", "wrn_00000000000000000000000000000000")).await, 401);
    assert_eq!(status(http.get(&url).header("x-hearth-token", "guess")).await, 404);
    let token = service.get(&path).await.unwrap().text("/access_token").to_owned();
    assert!(token.len() >= 32, "{token}");
    assert_eq!(status(http.get(&url).header("x-hearth-token", &token)).await, 200);
    let opened =
        service.send("PATCH", &path, Some(&service.key), br#"{"public_ports":[8765]}"#.to_vec()).await;
    assert_eq!(opened.unwrap().status, 200);
    assert_eq!(status(http.get(&url)).await, 200);
    // Traffic brings a paused capsule back, which was made so.
    assert_eq!(service.post(&format!("{path}/pause"), &json!({})).await.unwrap().status, 200);
    assert_eq!(status(http.get(&url)).await, 200);
    assert_eq!(service.get(&path).await.unwrap().text("/status"), "running");
    let closed = service.send("PATCH", &path, Some(&service.key), br#"{"public_ports":[]}"#.to_vec()).await;
    assert_eq!(closed.unwrap().status, 200);
    assert_eq!(status(http.get(&url)).await, 401);
    service.delete(&path).await.unwrap();
    service.stop_clean().unwrap();
}
