//! A host and an internet of a test's own: two network namespaces, joined by a pair of links. Nothing of the machine's
//! network is used or seen.
//!
//! The internet has every address that tests ask for: public ones, and private, link-local and metadata ones that would
//! answer if they could be reached. It serves HTTP and names, and remembers what it was asked.

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    collections::HashSet,
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// A public web server; what every name resolves to.
pub const WEB: &str = "203.0.113.10";
/// Another one.
pub const OTHER: &str = "203.0.113.200";
/// The public resolver.
pub const NAMES: &str = "203.0.113.53";
/// The host's own public address.
pub const HOST: &str = "198.51.100.2";
const HOSTS_GATEWAY: &str = "198.51.100.1";
/// Addresses that no capsule reaches unless it is told so.
pub const PRIVATE: [&str; 4] = ["10.99.0.1", "172.16.9.9", "192.168.77.1", "100.64.1.1"];
/// Addresses that no capsule reaches at all.
pub const NEVER: [&str; 2] = ["169.254.169.254", "169.254.7.7"];
/// How long a server's blocking call lasts before it looks whether it is to end.
const TICK: Duration = Duration::from_millis(50);

/// Runs `work` in a network namespace, on a thread that ends afterwards.
pub fn inside<T: Send + 'static>(
    namespace: &OwnedFd,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let namespace = namespace.try_clone()?;
    thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    })
    .join()
    .map_err(|_| anyhow::anyhow!("a thread in a namespace panicked"))?
}

fn new_namespace() -> anyhow::Result<OwnedFd> {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    })
    .join()
    .map_err(|_| anyhow::anyhow!("unshare panicked"))?
}

fn ip(args: &str) -> anyhow::Result<String> {
    let output = Command::new("ip").args(args.split(' ')).output().context("ip (package iproute2)")?;
    if !output.status.success() {
        bail!("ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the internet was asked.
#[derive(Debug, Default)]
struct Seen {
    names: HashSet<String>,
    datagrams: HashSet<String>,
    /// Who connected to it.
    peers: HashSet<Ipv4Addr>,
}

/// The two namespaces and the internet's servers, which end with it.
pub struct Internet {
    /// Where the agent is to be started.
    pub host: OwnedFd,
    internet: OwnedFd,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

impl Internet {
    /// Both, joined, with all servers up.
    pub fn new() -> anyhow::Result<Self> {
        let (host, internet) = (new_namespace()?, new_namespace()?);
        let pid = std::process::id();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&internet);
        inside(&host, move || {
            ip("link set lo up")?;
            ip(&format!("link add eth0 type veth peer name eth0 netns /proc/{pid}/fd/{fd}"))?;
            ip(&format!("address add {HOST}/24 dev eth0"))?;
            ip("link set eth0 up")?;
            ip(&format!("route add default via {HOSTS_GATEWAY}"))?;
            Ok(())
        })?;
        inside(&internet, || {
            ip("link set lo up")?;
            ip(&format!("address add {HOSTS_GATEWAY}/24 dev eth0"))?;
            ip("link set eth0 up")?;
            for address in [WEB, OTHER, NAMES].into_iter().chain(PRIVATE).chain(NEVER) {
                ip(&format!("address add {address}/32 dev lo"))?;
            }
            Ok(())
        })?;
        let mut all =
            Self { host, internet, seen: Arc::default(), stop: Arc::default(), servers: Vec::new() };
        all.serve()?;
        Ok(all)
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        let internet = self.internet.try_clone()?;
        let (web, names_tcp, names, datagrams) = inside(&internet, || {
            let any = |port: u16| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            Ok((
                TcpListener::bind(any(80))?,
                TcpListener::bind((NAMES, 53))?,
                UdpSocket::bind((NAMES, 53))?,
                UdpSocket::bind(any(9999))?,
            ))
        })?;
        let host_web = inside(&self.host, || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80))?))?;
        for listener in [web, host_web] {
            let seen = self.seen.clone();
            self.tcp(listener, move |stream| http(stream, &seen))?;
        }
        let seen = self.seen.clone();
        self.tcp(names_tcp, move |mut stream| {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question)?;
            let answer = answer(&question, &seen).context("no question")?;
            stream.write_all(&(answer.len() as u16).to_be_bytes())?;
            Ok(stream.write_all(&answer)?)
        })?;
        let seen = self.seen.clone();
        self.udp(names, move |socket, bytes, from| {
            if let Some(answer) = answer(bytes, &seen) {
                // The asker may be gone.
                let _ = socket.send_to(&answer, from);
            }
        })?;
        let seen = self.seen.clone();
        self.udp(datagrams, move |_, bytes, from| {
            let text = format!("{} {}", String::from_utf8_lossy(bytes), from.ip());
            seen.lock().unwrap_or_else(PoisonError::into_inner).datagrams.insert(text);
        })
    }

    fn tcp(
        &mut self,
        listener: TcpListener,
        serve: impl Fn(TcpStream) -> anyhow::Result<()> + Clone + Send + 'static,
    ) -> anyhow::Result<()> {
        listener.set_nonblocking(true)?;
        let stop = self.stop.clone();
        self.servers.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let serve = serve.clone();
                        // Ends with its connection, or its read's deadline.
                        thread::spawn(move || {
                            let _ = stream.set_nonblocking(false);
                            let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
                            let _ = serve(stream);
                        });
                    }
                    Err(_) => thread::sleep(TICK / 10),
                }
            }
        }));
        Ok(())
    }

    fn udp(
        &mut self,
        socket: UdpSocket,
        serve: impl Fn(&UdpSocket, &[u8], SocketAddr) + Send + 'static,
    ) -> anyhow::Result<()> {
        socket.set_read_timeout(Some(TICK))?;
        let stop = self.stop.clone();
        self.servers.push(thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    serve(&socket, &buffer[..length], from);
                }
            }
        }));
        Ok(())
    }

    /// Whether a name was asked for.
    pub fn was_asked_for(&self, name: &str) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).names.contains(name)
    }

    /// What came to port 9999, with who sent it.
    pub fn datagrams(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).datagrams.iter().cloned().collect()
    }

    /// Who connected to a web server.
    pub fn peers(&self) -> Vec<Ipv4Addr> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).peers.iter().copied().collect()
    }

    /// Whether the host reaches the port of an address: what a capsule is refused would have answered.
    pub fn answers_the_host(&self, address: &str, port: u16) -> anyhow::Result<bool> {
        let address = SocketAddr::new(address.parse()?, port);
        inside(&self.host, move || Ok(TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok()))
    }

    /// The host's IPv4 addresses.
    pub fn host_addresses(&self) -> anyhow::Result<Vec<String>> {
        let text = inside(&self.host, || ip("-4 -o address"))?;
        let words = text.lines().filter_map(|line| line.split_ascii_whitespace().nth(3));
        Ok(words.filter_map(|word| word.split('/').next()).map(str::to_owned).collect())
    }

    /// Links and tables that the host has beside its own.
    pub fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        inside(&self.host, || {
            let links = ip("-o link")?;
            let own = |line: &&str| !line.contains(" lo:") && !line.contains(" eth0@");
            let mut found: Vec<String> = links.lines().filter(own).map(str::to_owned).collect();
            let tables = Command::new("nft").args(["list", "tables"]).output()?;
            found.extend(String::from_utf8_lossy(&tables.stdout).lines().map(str::to_owned));
            Ok(found)
        })
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            // One that panicked has failed its test already.
            let _ = server.join();
        }
    }
}

/// Answers any request with the address that was connected to; `/keep` keeps the connection until the peer ends it.
fn http(mut stream: TcpStream, seen: &Mutex<Seen>) -> anyhow::Result<()> {
    if let SocketAddr::V4(peer) = stream.peer_addr()? {
        seen.lock().unwrap_or_else(PoisonError::into_inner).peers.insert(*peer.ip());
    }
    let mut request = [0; 1024];
    let length = stream.read(&mut request)?;
    let body = format!("hello from {}\n", stream.local_addr()?.ip());
    // At once: whoever reads once has it all.
    let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes())?;
    if request[..length].starts_with(b"GET /keep") {
        let _ = stream.read(&mut request);
    }
    Ok(())
}

/// The answer to a question for an address (RFC 1035): always the web server's.
fn answer(question: &[u8], seen: &Mutex<Seen>) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels: Vec<String> = Vec::new();
    loop {
        let length = usize::from(*question.get(at)?);
        let label = question.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(label).into_owned());
    }
    let asks_for_address = question.get(at..at + 2)? == [0, 1];
    seen.lock().unwrap_or_else(PoisonError::into_inner).names.insert(labels.join("."));
    let mut answer = question[..2].to_vec();
    // A response without error; one question, and one answer or none.
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(asks_for_address), 0, 0, 0, 0]);
    answer.extend(question.get(12..at + 4)?);
    if asks_for_address {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(WEB.parse::<Ipv4Addr>().ok()?.octets());
    }
    Some(answer)
}
