//! Connections to ports inside capsules.

use crate::folder;
use futures::StreamExt;
use hearth_e2e::{agent::TestAgent, leftovers, process::until};
use hearth_proto::{id::CapsuleId, metadata::ENVD_PORT, wire::port::PortBytes};
use std::{path::Path, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// Nothing here takes longer, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// One connection: bytes go into the sender.
struct Port {
    to: mpsc::Sender<PortBytes>,
    from: Streaming<PortBytes>,
}

impl Port {
    async fn open(agent: &TestAgent, id: &str, port: u32) -> Result<Self, Status> {
        let (to, bytes) = mpsc::channel(4);
        let first = PortBytes { capsule_id: id.to_owned(), port, ..Default::default() };
        to.send(first).await.unwrap();
        let mut client = agent.client.clone();
        let answered = timeout(DEADLINE, client.connect_port(ReceiverStream::new(bytes))).await.unwrap();
        Ok(Self { to, from: answered?.into_inner() })
    }

    async fn send(&self, data: &[u8], end: bool) -> bool {
        self.to.send(PortBytes { data: data.to_vec(), end, ..Default::default() }).await.is_ok()
    }

    /// Everything up to the service's end of file.
    async fn read_to_end(&mut self) -> Result<Vec<u8>, Status> {
        let mut all = Vec::new();
        loop {
            match timeout(DEADLINE, self.from.message()).await.expect("bytes in time")? {
                Some(message) if message.end => return Ok(all),
                Some(message) => all.extend(message.data),
                None => panic!("the stream ended without an end of file, after {} bytes", all.len()),
            }
        }
    }
}

async fn start(dir: &Path) -> (TestAgent, CapsuleId) {
    let mut agent = TestAgent::start(dir, &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    (agent, id)
}

/// Runs a Python program in the background that says on what it listens.
async fn serve(agent: &mut TestAgent, id: CapsuleId, program: &str) {
    let script = format!(
        "cat > /tmp/serve.py <<'END'\n{program}\nEND\nnohup python3 -u /tmp/serve.py >/tmp/said 2>&1 </dev/null &\n\
         for i in $(seq 300); do grep -q listens /tmp/said && break; sleep 0.1; done; cat /tmp/said"
    );
    let said = agent.shell(id, &script).await.unwrap();
    assert!(said.contains("listens"), "{said}");
}

/// 8000: HTTP. 8001: reads to the end, answers with a checksum, then sends as much itself. 8002: never reads.
/// All on localhost only.
const SERVERS: &str = r#"
import hashlib, http.server, socket, threading, time
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'hello from localhost'
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
def hashes(s):
    digest, size = hashlib.sha256(), 0
    while data := s.recv(65536):
        digest.update(data)
        size += len(data)
    s.sendall(('%d %s\n' % (size, digest.hexdigest())).encode())
    block = bytes(range(256)) * 256
    for _ in range(160):
        s.sendall(block)
    s.close()
def silent(s):
    time.sleep(3600)
def listen(port, serve):
    l = socket.create_server(('127.0.0.1', port))
    def loop():
        while True:
            s, _ = l.accept()
            threading.Thread(target=serve, args=(s,), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()
listen(8001, hashes)
listen(8002, silent)
web = http.server.ThreadingHTTPServer(('127.0.0.1', 8000), Hello)
print('listens')
web.serve_forever()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn services_on_localhost_are_reached_and_each_direction_ends_on_its_own() {
    let dir = folder();
    let (mut agent, id) = start(dir.path()).await;
    serve(&mut agent, id, SERVERS).await;

    let mut http = Port::open(&agent, &id.to_string(), 8000).await.unwrap();
    assert!(http.send(b"GET / HTTP/1.0\r\n\r\n", false).await);
    let answer = String::from_utf8(http.read_to_end().await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("hello from localhost"), "{answer}");
    // The service has ended; when we end too, the call does.
    drop(http.to);
    assert!(timeout(DEADLINE, http.from.message()).await.unwrap().unwrap().is_none());

    // 10 MiB there; our end of file is what makes the service answer with 10 MiB.
    let mut hashes = Port::open(&agent, &id.to_string(), 8001).await.unwrap();
    let block: Vec<u8> = (0..65_536_u32).map(|at| (at * 7 % 251) as u8).collect();
    for round in 0..160 {
        assert!(hashes.send(&block, round == 159).await);
    }
    let answer = hashes.read_to_end().await.unwrap();
    let line = answer.iter().position(|byte| *byte == b'\n').unwrap();
    let expected = {
        use sha2::{Digest, Sha256};
        let mut digest = Sha256::new();
        (0..160).for_each(|_| digest.update(&block));
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    assert_eq!(std::str::from_utf8(&answer[..line]).unwrap(), format!("{} {expected}", 160 * 65_536));
    let sent = &answer[line + 1..];
    assert_eq!(sent.len(), 160 * 65_536);
    assert!(sent.chunks(256).all(|chunk| chunk.iter().enumerate().all(|(at, byte)| *byte == at as u8)));
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_read_holds_its_caller_back_and_nobody_else() {
    let dir = folder();
    let (mut agent, id) = start(dir.path()).await;
    serve(&mut agent, id, SERVERS).await;
    let stuck = [
        Port::open(&agent, &id.to_string(), 8002).await.unwrap(),
        Port::open(&agent, &id.to_string(), 8002).await.unwrap(),
    ];
    for port in &stuck {
        // It takes what the buffers on the way hold, and then no more.
        let mut sent = 0;
        while timeout(Duration::from_secs(3), port.send(&[0; 65_536], false)).await == Ok(true) {
            sent += 65_536;
            assert!(sent < 64 << 20, "nothing holds the caller back");
        }
    }
    for _ in 0..3 {
        let mut http = Port::open(&agent, &id.to_string(), 8000).await.unwrap();
        assert!(http.send(b"GET / HTTP/1.0\r\n\r\n", true).await);
        assert!(!http.read_to_end().await.unwrap().is_empty());
    }
    assert_eq!(agent.python(id, "print(6*7)").await.unwrap(), "42");
    drop(stuck);
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_at_once_and_the_number_of_connections_is_bounded() {
    let dir = folder();
    let (mut agent, id) = start(dir.path()).await;
    serve(&mut agent, id, SERVERS).await;
    let id = id.to_string();
    let refused = async |id: &str, port: u32| Port::open(&agent, id, port).await.err().unwrap();
    let status = refused(&id, 4321).await;
    assert_eq!((status.code(), status.message()), (Code::NotFound, "nothing listens on port 4321"));
    for port in [0, 65_536, u32::from(ENVD_PORT)] {
        let status = refused(&id, port).await;
        assert!(
            status.code() == Code::InvalidArgument && status.message().starts_with("port: "),
            "{status:?}"
        );
    }
    assert_eq!(refused(&CapsuleId::new().to_string(), 80).await.code(), Code::NotFound);
    assert_eq!(refused("nonsense", 80).await.code(), Code::InvalidArgument);
    let mut open = Vec::new();
    let full = loop {
        match Port::open(&agent, &id, 8002).await {
            Ok(port) => open.push(port),
            Err(status) => break status,
        }
        assert!(open.len() <= 64);
    };
    assert_eq!((full.code(), open.len()), (Code::ResourceExhausted, 64), "{full:?}");
    // One that is closed makes room.
    open.pop();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while let Err(status) = Port::open(&agent, &id, 8002).await {
        assert!(
            status.code() == Code::ResourceExhausted && tokio::time::Instant::now() < deadline,
            "{status:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(open);
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_that_goes_ends_its_connections_and_a_caller_that_goes_ends_the_services() {
    let dir = folder();
    let (mut agent, id) = start(dir.path()).await;
    serve(&mut agent, id, SERVERS).await;
    let count = "ss_count() { grep -c ' 0100007F:1F42 .* 01 ' /proc/net/tcp; }; ss_count";
    let leaves = Port::open(&agent, &id.to_string(), 8002).await.unwrap();
    assert_eq!(agent.shell(id, count).await.unwrap().trim(), "1");
    drop(leaves);
    let mut left = String::new();
    for _ in 0..200 {
        left = agent.shell(id, &format!("{count} || true")).await.unwrap();
        if left.trim() == "0" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(left.trim(), "0", "the service still has its caller");
    let mut stays = Port::open(&agent, &id.to_string(), 8002).await.unwrap();
    agent.destroy(id).await.unwrap();
    let end = timeout(DEADLINE, stays.from.next()).await.expect("the stream ends").expect("with a status");
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    until(Duration::from_secs(30), "the VMM's folder to go", || {
        Ok((std::fs::read_dir(dir.path().join("agent/vmms"))?.count() == 0).then_some(()))
    })
    .unwrap();
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}
