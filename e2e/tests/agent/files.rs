//! Files of capsules, through the agent.

use crate::folder;
use futures::{StreamExt, stream};
use hearth_e2e::{
    agent::TestAgent,
    guest::{self, Files, download, upload},
    leftovers,
};
use hearth_proto::{
    id::CapsuleId,
    wire::{
        files::{
            Entry, EntryType, ListRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest,
            WatchKind, WatchRequest,
        },
        port::PortBytes,
    },
};
use sha2::{Digest, Sha256};
use std::{fs, path::Path, time::Duration};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

const MIB: usize = 1 << 20;

async fn start(dir: &Path) -> (TestAgent, CapsuleId, Files) {
    let mut agent = TestAgent::start(dir, &[("HEARTH_PARKED", "0")]).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    let files = guest::files(dir, id).unwrap();
    (agent, id, files)
}

fn end(dir: &Path, mut agent: TestAgent) {
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir), Vec::<String>::new());
}

/// Bytes that no compression and no hole makes cheap, different in every mebibyte.
fn block(number: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ number as u64;
    let mut bytes = Vec::with_capacity(MIB);
    while bytes.len() < MIB {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

async fn envd_peak_kib(agent: &mut TestAgent, id: CapsuleId) -> u64 {
    let script = "for p in $(pidof envd); do grep -h VmHWM /proc/$p/status; done | awk '$2 > m { m = $2 } END { print m }'";
    agent.shell(id, script).await.unwrap().trim().parse().unwrap()
}

async fn list(files: &Files, path: &str, depth: u32) -> Result<Vec<Entry>, Status> {
    let request = ListRequest { path: path.as_bytes().to_vec(), depth, ..Default::default() };
    let mut batches = files.clone().list(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(batch) = batches.message().await? {
        all.extend(batch.entries);
    }
    Ok(all)
}

/// Sends bytes to a port of the capsule, or reads them from it: what the connection can do without files.
async fn raw(agent: &TestAgent, id: CapsuleId, port: u32, sends: usize) -> (usize, Duration) {
    let (to, messages) = tokio::sync::mpsc::channel(4);
    let begun = Instant::now();
    to.send(PortBytes { capsule_id: id.to_string(), port, ..Default::default() }).await.unwrap();
    let sending = tokio::spawn(async move {
        for number in 0..sends {
            to.send(PortBytes { data: block(number), ..Default::default() }).await.unwrap();
        }
        to.send(PortBytes { end: true, ..Default::default() }).await.unwrap();
    });
    let mut client = agent.client.clone();
    let mut answers = client.connect_port(ReceiverStream::new(messages)).await.unwrap().into_inner();
    let mut received = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        received += answer.data.len();
        if answer.end {
            break;
        }
    }
    sending.await.unwrap();
    (received, begun.elapsed())
}

/// 9001 reads all and answers with one byte; 9002 sends 300 MiB.
const SERVERS: &str = r#"
import socket, threading
def sink(s):
    buffer = bytearray(1 << 20)
    while s.recv_into(buffer): pass
    s.sendall(b'.'); s.close()
def source(s):
    block = open('/tmp/large', 'rb').read(1 << 20)
    for _ in range(300): s.sendall(block)
    s.close()
for port, serve in ((9001, sink), (9002, source)):
    l = socket.create_server(('127.0.0.1', port))
    def loop(l=l, serve=serve):
        while True:
            s, _ = l.accept()
            threading.Thread(target=serve, args=(s,), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_mebibytes_go_there_and_back_unchanged_in_bounded_memory() {
    const BLOCKS: usize = 300;
    let dir = folder();
    let (mut agent, id, files) = start(dir.path()).await;
    let before = resident_kib(agent.process.pid());
    let mut sent = Sha256::new();
    (0..BLOCKS).for_each(|number| sent.update(block(number)));
    let sent = sent.finalize();
    let chunks = stream::iter(0..BLOCKS).map(block);
    let begun = Instant::now();
    let entry = upload(&files, b"/tmp/large", "", chunks).await.unwrap();
    let up = begun.elapsed();
    assert_eq!(entry.size, (BLOCKS * MIB) as u64);
    let mut received = Sha256::new();
    let mut size = 0;
    let begun = Instant::now();
    download(&files, b"/tmp/large", "", |data| size += data.len()).await.unwrap();
    let down = begun.elapsed();
    download(&files, b"/tmp/large", "", |data| received.update(data)).await.unwrap();
    assert_eq!((size, received.finalize()), (BLOCKS * MIB, sent));
    let grown = resident_kib(agent.process.pid()).saturating_sub(before);
    let envd = envd_peak_kib(&mut agent, id).await;
    agent.python(id, SERVERS).await.unwrap();
    let (_, raw_up) = raw(&agent, id, 9001, BLOCKS).await;
    let (received, raw_down) = raw(&agent, id, 9002, 0).await;
    assert_eq!(received, BLOCKS * MIB);
    let rate = |time: Duration| BLOCKS as f64 / time.as_secs_f64();
    println!(
        "up {:.1} MiB/s, raw {:.1}: {:.0} %; down {:.1} MiB/s, raw {:.1}: {:.0} %; agent grew {grown} KiB, envd {envd} KiB",
        rate(up),
        rate(raw_up),
        100.0 * rate(up) / rate(raw_up),
        rate(down),
        rate(raw_down),
        100.0 * rate(down) / rate(raw_down),
    );
    assert!(grown < 64 << 10, "the agent grew by {grown} KiB");
    assert!(envd < 64 << 10, "envd had {envd} KiB");
    end(dir.path(), agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gibibytes_of_mostly_nothing_take_no_disk_and_read_the_same() {
    const BLOCKS: usize = 2048;
    let dir = folder();
    let (agent, _, files) = start(dir.path()).await;
    let piece = |number: usize| if number % 500 == 7 { block(number) } else { vec![0; MIB] };
    let mut sent = Sha256::new();
    let entry = upload(&files, b"/root/sparse", "", stream::iter(0..BLOCKS).map(piece)).await.unwrap();
    (0..BLOCKS).for_each(|number| sent.update(piece(number)));
    assert_eq!(entry.size, (BLOCKS * MIB) as u64);
    assert!(entry.disk_bytes < 16 << 20, "{entry:?}");
    let mut received = Sha256::new();
    download(&files, b"/root/sparse", "", |data| received.update(data)).await.unwrap();
    assert_eq!(received.finalize(), sent.finalize());
    end(dir.path(), agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_or_does_not_fit_changes_nothing() {
    let dir = folder();
    let (mut agent, id, files) = start(dir.path()).await;
    agent
        .shell(id, "mkdir /small && mount -t tmpfs -o size=8m small /small && echo old > /small/file")
        .await
        .unwrap();
    for _ in 0..20 {
        let (to, chunks) = tokio::sync::mpsc::channel(1);
        let client = files.clone();
        let uploading =
            tokio::spawn(
                async move { upload(&client, b"/small/file", "", ReceiverStream::new(chunks)).await },
            );
        for number in 0..3 {
            to.send(block(number)).await.unwrap();
        }
        uploading.abort();
        let _ = uploading.await;
    }
    let full = upload(&files, b"/small/file", "", stream::iter(0..30).map(block)).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
    assert!(full.message().contains("/small/"), "{full:?}");
    let deadline = Instant::now() + Duration::from_secs(30);
    while list(&files, "/small", 1).await.unwrap().len() != 1 {
        assert!(Instant::now() < deadline, "a part of a file is left");
    }
    assert_eq!(agent.shell(id, "cat /small/file").await.unwrap(), "old\n");
    agent.shell(id, "umount /small").await.unwrap();
    end(dir.path(), agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_links_users_and_hostile_things_are_what_they_are() {
    let dir = folder();
    let (mut agent, id, files) = start(dir.path()).await;
    for name in [&b"caf\xe9 \xff"[..], b"new\nline", "grüße €".as_bytes()] {
        let path = [b"~/odd/", name].concat();
        let entry = upload(&files, &path, "user", stream::iter([name.to_vec()])).await.unwrap();
        assert_eq!((entry.name.as_slice(), entry.owner.as_str(), entry.mode), (name, "user", 0o644));
        let mut read: Vec<u8> = Vec::new();
        download(&files, &path, "user", |data| read.extend(data)).await.unwrap();
        assert_eq!(read, name);
    }
    let script = "cd ~user/odd && ln -s nowhere dangling && mkfifo -m 666 pipe && echo s > secret && chmod 600 secret \
        && mkdir many && cd many && seq -f 'n%06.0f' 1 20000 | xargs touch";
    agent.shell(id, script).await.unwrap();
    let refused = async |path: &str, user: &str| {
        let reading = download(&files, path.as_bytes(), user, |_| {});
        timeout(Duration::from_secs(20), reading).await.expect("an answer").unwrap_err().code()
    };
    for path in ["~/odd/pipe", "/dev/zero", "/dev/null", "~/odd"] {
        assert_eq!(refused(path, "user").await, Code::FailedPrecondition, "{path}");
    }
    assert_eq!(refused("~/odd/secret", "user").await, Code::PermissionDenied);
    assert_eq!(refused("~/odd/missing", "user").await, Code::NotFound);
    let denied = upload(&files, b"/etc/passwd", "user", stream::iter([vec![1]])).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let mut version: Vec<u8> = Vec::new();
    download(&files, b"/proc/version", "user", |data| version.extend(data)).await.unwrap();
    assert!(version.starts_with(b"Linux version"));
    // A kernel log has no end; what there is of it does.
    timeout(Duration::from_secs(20), download(&files, b"/proc/kmsg", "", |_| {})).await.unwrap().unwrap();
    let entries =
        timeout(Duration::from_secs(120), list(&files, "/home/user/odd", 2)).await.unwrap().unwrap();
    assert_eq!(entries.len(), 20_000 + 7);
    let dangling = entries.iter().find(|entry| entry.name == b"dangling").unwrap();
    assert_eq!(
        (dangling.r#type(), dangling.symlink_target.as_deref()),
        (EntryType::Symlink, Some(&b"nowhere"[..]))
    );
    let mut client = files.clone();
    let path = |text: &str| text.as_bytes().to_vec();
    let again = client.make_dir(MakeDirRequest { path: path("~/odd"), user: "user".to_owned() }).await;
    assert_eq!(again.unwrap_err().code(), Code::AlreadyExists);
    let moving =
        MoveRequest { from: path("/home/user/odd/many"), to: path("/home/user/moved"), ..Default::default() };
    client.r#move(moving).await.unwrap();
    client.remove(RemoveRequest { path: path("/home/user/moved"), ..Default::default() }).await.unwrap();
    let gone = client.stat(StatRequest { path: path("/home/user/moved"), ..Default::default() }).await;
    assert_eq!(gone.unwrap_err().code(), Code::NotFound);
    // A directory of the template's own, which the overlay cannot rename.
    let moving =
        MoveRequest { from: path("/usr/share/common-licenses"), to: path("/srv/l"), ..Default::default() };
    client.r#move(moving).await.unwrap();
    assert!(!list(&files, "/srv/l", 1).await.unwrap().is_empty());
    let mut watching = client
        .watch(WatchRequest { path: path("/srv"), recursive: true, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    agent.shell(id, "mkdir -p /srv/a/b && echo x > /srv/a/b/c && mv /srv/a/b/c /srv/a/d").await.unwrap();
    let mut seen = Vec::new();
    while !seen.iter().any(|(kind, _): &(WatchKind, Vec<u8>)| *kind == WatchKind::Renamed) {
        let event = timeout(Duration::from_secs(20), watching.message()).await.unwrap().unwrap().unwrap();
        seen.push((event.kind(), event.path));
    }
    assert_eq!(seen[0].0, WatchKind::Watching);
    assert!(seen.contains(&(WatchKind::Created, path("/srv/a/b/c"))), "{seen:?}");
    end(dir.path(), agent);
}
