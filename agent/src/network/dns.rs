//! Names for capsules: a relay from the router's namespace to the host's resolvers, over UDP and TCP.
//!
//! A guest asks one constant address. Who may ask is decided by the router's rules (those that reach anything), and the
//! source address cannot be forged. The relay passes messages on without reading them; they go to the host's resolvers
//! and nowhere else. Everything is bounded, for each slot and altogether.

use super::{netns::NetworkError, plan, router::Router};
use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const PORT: u16 = 53;
/// Largest message over UDP that is passed on; answers that do not fit come by TCP.
const MESSAGE_BYTES_MAX: usize = 4096;
/// The fixed part of a message.
const HEADER_BYTES: usize = 12;
/// Questions under way: of one slot, of all. A TCP connection counts as one.
const SLOT_MAX: usize = 32;
const ALL_MAX: usize = 512;
/// How long one resolver may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
/// How long a connection may last.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(15);
/// Resolvers that are asked in turn, as resolv.conf(5) has it.
const RESOLVERS_MAX: usize = 3;
/// After an error of a socket.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Where questions go.
#[derive(Debug, Clone)]
pub enum Resolvers {
    /// To these.
    Fixed(Vec<IpAddr>),
    /// To those of /etc/resolv.conf, as it is when a question comes.
    Host,
}

impl Resolvers {
    fn now(&self) -> Vec<IpAddr> {
        match self {
            Self::Fixed(resolvers) => resolvers.clone(),
            Self::Host => resolvers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        }
    }
}

/// (pure) The resolvers that a resolv.conf(5) names; the host itself when it names none.
fn resolvers(text: &str) -> Vec<IpAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    });
    let found: Vec<IpAddr> = named.take(RESOLVERS_MAX).collect();
    if found.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { found }
}

/// Counts questions under way.
#[derive(Debug, Default)]
struct Places {
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One question under way.
struct Place {
    places: Arc<Places>,
    asker: IpAddr,
}

impl Places {
    fn take(self: &Arc<Self>, asker: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if ALL_MAX <= taken.values().sum() {
            return None;
        }
        let own = taken.entry(asker).or_default();
        if SLOT_MAX <= *own {
            return None;
        }
        *own += 1;
        Some(Place { places: self.clone(), asker })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.asker) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.asker);
            }
        }
    }
}

/// Serves until `stop`. Returns when it listens.
pub fn start(
    router: &Router,
    resolvers: Resolvers,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<(), NetworkError> {
    let address = SocketAddr::from((plan::GATEWAY, PORT));
    let (udp, tcp) = router.inside(move || {
        let udp = std::net::UdpSocket::bind(address)?;
        let tcp = std::net::TcpListener::bind(address)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok((udp, tcp))
    })?;
    let failed = |source| NetworkError::System { what: "the relay's sockets", source };
    let udp = Arc::new(UdpSocket::from_std(udp).map_err(failed)?);
    let tcp = TcpListener::from_std(tcp).map_err(failed)?;
    let places = Arc::new(Places::default());
    let (datagrams, stopped) = (serve_udp(udp, resolvers.clone(), places.clone()), stop.clone());
    tasks.spawn(async move { stopped.run_until_cancelled(datagrams).await });
    tasks.spawn(async move { stop.run_until_cancelled(serve_tcp(tcp, resolvers, places)).await });
    Ok(())
}

async fn serve_udp(socket: Arc<UdpSocket>, resolvers: Resolvers, places: Arc<Places>) {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let (length, asker) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Also the echo of an answer that nobody waited for.
                tracing::debug!(%error, "no question was received");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.take(asker.ip()) else {
            count("busy");
            continue;
        };
        let (question, socket, resolvers) = (buffer[..length].to_vec(), socket.clone(), resolvers.now());
        // Ends by its deadlines; not waited for at the agent's end.
        tokio::spawn(async move {
            let _place = place;
            match ask_all(&question, &resolvers).await {
                Some(answer) => {
                    count("answered");
                    // The asker may be gone.
                    let _ = socket.send_to(&answer, asker).await;
                }
                None => count("unanswered"),
            }
        });
    }
}

async fn ask_all(question: &[u8], resolvers: &[IpAddr]) -> Option<Vec<u8>> {
    if question.len() < HEADER_BYTES {
        return None;
    }
    for resolver in resolvers {
        match timeout(ANSWER_DEADLINE, ask(question, *resolver)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%resolver, %error, "a resolver failed"),
            Err(_) => tracing::debug!(%resolver, "a resolver gave no answer"),
        }
    }
    None
}

/// Asks from a port of its own, which makes a forged answer as hard as for the host itself.
async fn ask(question: &[u8], resolver: IpAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect((resolver, PORT)).await?;
    socket.send(question).await?;
    let mut answer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Another question's.
        if length < HEADER_BYTES || answer[..2] != question[..2] {
            continue;
        }
        answer.truncate(length);
        return Ok(answer);
    }
}

async fn serve_tcp(listener: TcpListener, resolvers: Resolvers, places: Arc<Places>) {
    loop {
        let (mut asker, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection for names was not accepted");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.take(address.ip()) else {
            count("busy");
            continue;
        };
        let resolvers = resolvers.now();
        tokio::spawn(async move {
            let _place = place;
            let relayed = timeout(CONNECTION_DEADLINE, async {
                let mut resolver = connect(&resolvers).await?;
                tokio::io::copy_bidirectional(&mut asker, &mut resolver).await
            });
            count(if matches!(relayed.await, Ok(Ok(_))) { "answered" } else { "unanswered" });
        });
    }
}

async fn connect(resolvers: &[IpAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for resolver in resolvers {
        match timeout(ANSWER_DEADLINE, TcpStream::connect((*resolver, PORT))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn count(result: &'static str) {
    metrics::counter!("hearth_agent_name_questions_total", "result" => result).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_the_first_three_that_are_addresses() {
        let text = "# nameserver 9.9.9.9\nnameserver 10.0.0.1\nnameserver x\nsearch a.b\n nameserver ::1\n\
                    nameserver 1.1.1.1\nnameserver 8.8.8.8\n";
        let found: Vec<String> = resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1", "::1", "1.1.1.1"]);
        assert_eq!(resolvers(""), [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    }

    #[test]
    fn one_slot_cannot_take_all_places() {
        let places = Arc::new(Places::default());
        let (one, other) = (IpAddr::from([10, 203, 64, 1]), IpAddr::from([10, 203, 64, 2]));
        let mut held: Vec<Place> = (0..SLOT_MAX).map(|_| places.take(one).unwrap()).collect();
        assert!(places.take(one).is_none());
        assert!(places.take(other).is_some());
        held.pop();
        assert!(places.take(one).is_some());
        drop(held);
        assert!(places.taken.lock().unwrap().is_empty());
        let all: Vec<Place> = (0..ALL_MAX)
            .map(|at| places.take(IpAddr::from([10, 203, 65, (at / SLOT_MAX) as u8])).unwrap())
            .collect();
        assert!(places.take(one).is_none(), "{}", all.len());
    }

    #[tokio::test]
    async fn an_answer_must_belong_to_its_question() {
        let short = ask_all(&[1, 2, 3], &[Ipv4Addr::LOCALHOST.into()]).await;
        assert!(short.is_none());
    }
}
