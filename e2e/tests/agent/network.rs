//! What capsules reach and what they do not: attempts from inside, with hosts that would have answered. The agent runs in
//! a network namespace of the test's own.

use crate::folder;
use hearth_e2e::{
    agent::TestAgent,
    internet::{HOST, Internet, NEVER, OTHER, PRIVATE, WEB, inside},
    leftovers,
    process::Hearth,
};
use hearth_proto::{
    id::CapsuleId,
    metadata::ENVD_PORT,
    wire::agent::{self as wire, NetworkPolicy},
};
use std::path::Path;

/// Tries each `ADDRESS:PORT` at once and prints those that answered a request, or just accepted one.
const REACH: &str = r#"
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def attempt(target):
    host, port = target.rsplit(':', 1)
    try:
        with socket.create_connection((host, int(port)), timeout=20) as s:
            s.sendall(b'GET / HTTP/1.0\r\n\r\n')
            return target if port != '80' or b'hello' in s.recv(4096) else None
    except OSError:
        return None
with ThreadPoolExecutor(64) as pool:
    print(' '.join(sorted(filter(None, pool.map(attempt, TARGETS)))))
"#;

pub async fn start(internet: &Internet, dir: &Path, env: &[(&str, &str)]) -> TestAgent {
    let folder = dir.to_owned();
    let settings = [
        ("HEARTH_EGRESS", "true"),
        ("HEARTH_DNS", hearth_e2e::internet::NAMES),
        ("HEARTH_ON_STOP", "destroy"),
    ];
    let env: Vec<(String, String)> =
        settings.iter().chain(env).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    // The process has the network of the thread that starts it.
    let process = inside(&internet.host, move || {
        let env: Vec<(&str, &str)> =
            env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Hearth::start(&folder, &["agent"], &env)
    })
    .unwrap();
    let mut agent = TestAgent::meet(dir, process).await.unwrap();
    agent.ensure_code().await.unwrap();
    agent
}

pub fn stop(mut agent: TestAgent, internet: &Internet, dir: &Path) {
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir), Vec::<String>::new());
    assert_eq!(internet.leftovers().unwrap(), Vec::<String>::new(), "the host is as it was");
}

fn policy(internet: bool, allow: &[&str], deny: &[&str]) -> NetworkPolicy {
    let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    NetworkPolicy { internet, allow: own(allow), deny: own(deny), best_effort: false }
}

pub async fn restore(agent: &mut TestAgent, network: Option<NetworkPolicy>) -> CapsuleId {
    let id = CapsuleId::new();
    let template = "code".to_owned();
    let request =
        wire::RestoreRequest { capsule_id: id.to_string(), template, network, ..Default::default() };
    agent.client.restore(request).await.unwrap();
    id
}

/// Which of the targets a capsule reaches.
pub async fn reach(agent: &mut TestAgent, id: CapsuleId, targets: &[String]) -> Vec<String> {
    let said = agent.python(id, &format!("TARGETS = {targets:?}\n{REACH}")).await.unwrap();
    said.split_ascii_whitespace().map(str::to_owned).collect()
}

fn port(addresses: &[&str], port: u16) -> Vec<String> {
    addresses.iter().map(|address| format!("{address}:{port}")).collect()
}

async fn resolves(agent: &mut TestAgent, id: CapsuleId, name: &str) -> bool {
    let code = format!(
        "import socket\ntry:\n  print(socket.gethostbyname({name:?}))\nexcept OSError as error:\n  print('no', error)"
    );
    agent.python(id, &code).await.unwrap() == WEB
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_reaches_what_its_policy_says_and_no_more() {
    let dir = folder();
    let internet = Internet::new().unwrap();
    let mut agent = start(&internet, dir.path(), &[]).await;
    let open = restore(&mut agent, Some(policy(true, &[], &[]))).await;
    let closed = restore(&mut agent, None).await;

    // What is tried: public, private, never; the host by every address it has; router and slots; the guest daemons.
    let hosts = internet.host_addresses().unwrap();
    assert!(hosts.len() >= 3, "loopback, its own, and the router's link: {hosts:?}");
    let mut targets = port(&[WEB, OTHER], 80);
    targets.extend(port(&PRIVATE, 80));
    targets.extend(port(&NEVER, 80));
    let others: Vec<String> = hosts.iter().filter(|address| *address != "127.0.0.1").cloned().collect();
    targets.extend(others.iter().map(|address| format!("{address}:80")));
    targets.extend(port(&["10.203.1.1", "10.203.0.1"], 80));
    for slot in 0..16 {
        targets.extend(port(&[&format!("10.203.64.{slot}")], ENVD_PORT));
        targets.extend(port(&[&format!("10.203.64.{slot}")], 80));
    }
    // They would have answered.
    for target in port(&PRIVATE, 80).iter().chain(&port(&NEVER, 80)).chain(&port(&[HOST, WEB], 80)) {
        let (address, port) = target.rsplit_once(':').unwrap();
        assert!(internet.answers_the_host(address, port.parse().unwrap()).unwrap(), "{target}");
    }

    assert_eq!(reach(&mut agent, open, &targets).await, port(&[WEB, OTHER], 80));
    assert_eq!(reach(&mut agent, closed, &targets).await, Vec::<String>::new());
    assert!(resolves(&mut agent, open, "open.example.test").await);
    assert!(internet.was_asked_for("open.example.test"));
    assert!(!resolves(&mut agent, closed, "secret.example.test").await);
    assert!(!internet.was_asked_for("secret.example.test"), "a name leaked");
    // Names come by TCP too.
    let over_tcp = "import socket, struct\ns = socket.create_connection(('10.203.1.1', 53), timeout=10)\n\
                    q = struct.pack('>6H', 7, 256, 1, 0, 0, 0) + b'\\x03tcp\\x04test\\x00' + struct.pack('>2H', 1, 1)\n\
                    s.sendall(struct.pack('>H', len(q)) + q)\nprint(len(s.recv(1000)) > 20)";
    assert_eq!(agent.python(open, over_tcp).await.unwrap(), "True");
    // The relay is no way to other ports or hosts, and the internet saw the host's address only.
    assert_eq!(internet.peers().iter().map(ToString::to_string).collect::<Vec<_>>(), [HOST]);

    // Services of one capsule are not reached by another, whatever they listen on and whatever is allowed.
    let wide = restore(&mut agent, Some(policy(true, &["0.0.0.0/0", "10.0.0.0/8"], &[]))).await;
    let serve = "cd /tmp && nohup python3 -m http.server 80 >/dev/null 2>&1 </dev/null & for i in $(seq 100); do \
                 python3 -c 'import socket; socket.create_connection((\"10.203.0.2\", 80))' 2>/dev/null && break; \
                 sleep 0.1; done; echo up";
    assert_eq!(agent.shell(closed, serve).await.unwrap().trim(), "up");
    let mut reached = reach(&mut agent, wide, &targets).await;
    reached.sort();
    assert_eq!(
        reached,
        port(&["10.99.0.1", WEB, OTHER], 80),
        "10.0.0.0/8 is open, our own part of it is not"
    );
    stop(agent, &internet, dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_allow_and_deny_and_stay_over_pause_copy_and_claim() {
    let dir = folder();
    let internet = Internet::new().unwrap();
    let mut agent = start(&internet, dir.path(), &[]).await;
    let all: Vec<String> =
        port(&[WEB, OTHER], 80).into_iter().chain(port(&PRIVATE, 80)).chain(port(&NEVER, 80)).collect();

    let listed = restore(&mut agent, Some(policy(false, &["203.0.113.0/25", "192.168.77.0/24"], &[]))).await;
    assert_eq!(reach(&mut agent, listed, &all).await, port(&["192.168.77.1", WEB], 80));
    agent.pause(listed).await.unwrap();
    agent.resume(listed).await.unwrap();
    assert_eq!(reach(&mut agent, listed, &all).await, port(&["192.168.77.1", WEB], 80), "after a pause");
    let (copies, _) = agent.fork(listed, 1).await.unwrap();
    assert_eq!(reach(&mut agent, copies[0], &all).await, port(&["192.168.77.1", WEB], 80), "a copy");
    let shown = agent.get(copies[0]).await.unwrap().network.unwrap();
    assert_eq!(shown, policy(false, &["203.0.113.0/25", "192.168.77.0/24"], &[]));

    // What is denied wins, also over what is allowed by name.
    let denied = restore(
        &mut agent,
        Some(policy(true, &["10.99.0.0/16", "172.16.0.0/12"], &["203.0.113.200", "172.16.9.0/24"])),
    )
    .await;
    assert_eq!(reach(&mut agent, denied, &all).await, port(&["10.99.0.1", WEB], 80));
    agent.destroy(denied).await.unwrap();

    // A parked one has nothing until it is claimed with something.
    let parked = agent.restore(true).await.unwrap();
    let claim =
        |network| wire::ClaimRequest { capsule_id: parked.to_string(), network, ..Default::default() };
    agent.client.claim(claim(None)).await.unwrap();
    assert!(reach(&mut agent, parked, &all).await.is_empty());
    agent.client.claim(claim(Some(policy(true, &[], &[])))).await.unwrap();
    assert_eq!(reach(&mut agent, parked, &all).await, port(&[WEB, OTHER], 80));
    // Withdrawn: also from connections that are open.
    let keep = format!(
        "import socket\nkept = socket.create_connection(('{WEB}', 80), timeout=10)\n\
         kept.sendall(b'GET /keep HTTP/1.0\\r\\n\\r\\n')\nseen = b''\n\
         while b'hello' not in seen or not seen.endswith(b'\\n'): seen += kept.recv(1000)\nprint(b'200' in seen)"
    );
    assert_eq!(agent.python(parked, &keep).await.unwrap(), "True");
    agent.client.claim(claim(Some(policy(false, &[], &[])))).await.unwrap();
    let late = "kept.settimeout(3)\ntry:\n  kept.sendall(b'more')\n  data = kept.recv(1000)\n  \
                print('ended' if data == b'' else 'got', data)\nexcept OSError:\n  print('cut')";
    assert_eq!(agent.python(parked, late).await.unwrap(), "cut");
    stop(agent, &internet, dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_policies_are_refused_by_field() {
    let dir = folder();
    let internet = Internet::new().unwrap();
    let mut agent = start(&internet, dir.path(), &[("HEARTH_PARKED", "0")]).await;
    for (network, words) in [
        (policy(false, &["10.0.0.1/8"], &[]), "network.allow"),
        (policy(true, &["169.254.169.254"], &[]), "no capsule can reach"),
        (policy(true, &[], &["nonsense"]), "network.deny"),
        (policy(true, &["2001:db8::/32"], &[]), "IPv6"),
    ] {
        let (capsule_id, template) = (CapsuleId::new().to_string(), "code".to_owned());
        let request =
            wire::RestoreRequest { capsule_id, template, network: Some(network), ..Default::default() };
        let status = agent.client.restore(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(words), "{words} in {status:?}");
    }
    stop(agent, &internet, dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_cannot_lie_about_its_address() {
    let dir = folder();
    let internet = Internet::new().unwrap();
    let mut agent = start(&internet, dir.path(), &[]).await;
    let id = restore(&mut agent, Some(policy(true, &[], &[]))).await;
    let other = restore(&mut agent, Some(policy(true, &[], &[]))).await;
    // Whole IP packets, with the header's source as the guest likes.
    let script = r#"python3 - <<'END'
import socket, struct
def send(source, mark):
    payload = mark.encode()
    udp = struct.pack('>4H', 9998, 9999, 8 + len(payload), 0) + payload
    head = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
                       socket.inet_aton(source), socket.inet_aton('203.0.113.10'))
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(head + udp, ('203.0.113.10', 9999))
for source in ['203.0.113.77', '10.203.0.1', '10.203.64.1', '10.203.64.2', '10.203.1.1', '198.51.100.2', '127.0.0.1', '10.99.0.1']:
    try:
        send(source, 'lie-' + source)
    except OSError:
        pass
send('10.203.0.2', 'truth')
END"#;
    agent.shell(id, script).await.unwrap();
    hearth_e2e::process::until(std::time::Duration::from_secs(20), "the honest datagram", || {
        Ok(internet.datagrams().iter().any(|text| text.starts_with("truth")).then_some(()))
    })
    .unwrap();
    // They were sent before the honest one, on the same way.
    assert_eq!(internet.datagrams(), [format!("truth {HOST}")]);
    assert_eq!(reach(&mut agent, other, &port(&[WEB], 80)).await, port(&[WEB], 80));
    stop(agent, &internet, dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_one_capsule_leaves_the_others_their_network() {
    let dir = folder();
    let internet = Internet::new().unwrap();
    let mut agent = start(&internet, dir.path(), &[]).await;
    let bad = restore(&mut agent, Some(policy(true, &[], &[]))).await;
    let good = restore(&mut agent, Some(policy(true, &[], &[]))).await;
    // As many connections as it can have, and no more.
    let many = format!(
        "import socket, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\nkept, failed = [], 0\n\
         for i in range(1300):\n  s = socket.socket()\n  s.settimeout(0.5)\n  try:\n    s.connect(('{WEB}', 80))\n    \
         kept.append(s)\n  except OSError:\n    failed += 1\n    if failed > 5:\n      break\nprint(len(kept), failed)"
    );
    let said = agent.python(bad, &many).await.unwrap();
    let mut counts = said.split(' ').map(|word| word.parse::<u32>().unwrap());
    let (kept, failed) = (counts.next().unwrap(), counts.next().unwrap());
    assert!((1000..=1024).contains(&kept) && failed > 5, "{said}");
    assert_eq!(reach(&mut agent, good, &port(&[WEB], 80)).await, port(&[WEB], 80));
    // Datagrams as fast as they go, to what it may reach and what not, and questions for names.
    let flood = "cat > /tmp/flood.py <<'END'\nimport socket, sys\n\
                 s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.setblocking(False)\n\
                 while True:\n  for target in [('203.0.113.10', 7), ('10.99.0.1', 7), ('10.203.1.1', 53)]:\n    \
                 try:\n      s.sendto(b'x' * 1000, target)\n    except OSError:\n      pass\nEND\n\
                 nohup python3 /tmp/flood.py >/dev/null 2>&1 </dev/null & echo floods";
    assert_eq!(agent.shell(bad, flood).await.unwrap().trim(), "floods");
    for _ in 0..3 {
        assert_eq!(reach(&mut agent, good, &port(&[WEB, OTHER], 80)).await, port(&[WEB, OTHER], 80));
        assert!(resolves(&mut agent, good, "during.flood.test").await);
    }
    agent.destroy(bad).await.unwrap();
    stop(agent, &internet, dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_way_out_capsules_run_and_the_host_is_left_alone() {
    let dir = folder();
    let internet = Internet::new().unwrap();
    let mut agent = start(&internet, dir.path(), &[("HEARTH_EGRESS", "false")]).await;
    assert_eq!(internet.leftovers().unwrap(), Vec::<String>::new());
    let (capsule_id, template) = (CapsuleId::new().to_string(), "code".to_owned());
    let mut request = wire::RestoreRequest { capsule_id, template, ..Default::default() };
    request.network = Some(policy(true, &[], &[]));
    let status = agent.client.restore(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("HEARTH_EGRESS"), "{status:?}");
    // Whoever can do without says so.
    request.network = Some(NetworkPolicy { best_effort: true, ..policy(true, &[], &[]) });
    let capsule = agent.client.restore(request).await.unwrap().into_inner();
    assert_eq!(capsule.network, Some(policy(false, &[], &[])));
    let id = capsule.capsule_id.parse().unwrap();
    assert!(reach(&mut agent, id, &port(&[WEB, HOST], 80)).await.is_empty());
    stop(agent, &internet, dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agents_capsule_keeps_its_network_with_the_next() {
    let dir = folder();
    let internet = Internet::new().unwrap();
    let mut agent = start(&internet, dir.path(), &[]).await;
    let id = restore(&mut agent, Some(policy(true, &[], &[]))).await;
    assert_eq!(reach(&mut agent, id, &port(&[WEB], 80)).await, port(&[WEB], 80));
    agent.process.kill().unwrap();
    assert!(!internet.leftovers().unwrap().is_empty(), "the router outlives its agent");
    drop(agent);
    let mut agent = start(&internet, dir.path(), &[]).await;
    let other = restore(&mut agent, Some(policy(true, &[], &[]))).await;
    for id in [id, other] {
        assert_eq!(reach(&mut agent, id, &port(&[WEB, "10.99.0.1"], 80)).await, port(&[WEB], 80));
    }
    agent.destroy(id).await.unwrap();
    assert_eq!(reach(&mut agent, other, &port(&[WEB], 80)).await, port(&[WEB], 80));
    stop(agent, &internet, dir.path());
}
