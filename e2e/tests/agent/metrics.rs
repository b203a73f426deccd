//! What the agent says of page faults and of bytes that go out.

use crate::{folder, network};
use hearth_e2e::{
    agent::TestAgent,
    internet::{Internet, WEB, inside},
    leftovers,
};
use hearth_proto::wire::agent::NetworkPolicy;
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
};

const FAULTS: &str = "hearth_agent_fault_serve_seconds";
const EGRESS: &str = "hearth_agent_egress_bytes_total";

fn scrape(address: &str) -> anyhow::Result<String> {
    let (mut stream, mut text) = (TcpStream::connect(address)?, String::new());
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The values of a metric, by its labels as they are written.
fn values(text: &str, name: &str) -> Vec<(String, f64)> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    lines.map(|(labels, value)| (labels.to_owned(), value.parse().unwrap())).collect()
}

fn value(text: &str, name: &str, labels: &str) -> f64 {
    values(text, name).into_iter().find(|(found, _)| found == labels).map_or(0.0, |(_, value)| value)
}

/// An address that nobody uses now.
fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn page_faults_are_told_by_how_long_they_took() {
    let dir = folder();
    let address = address();
    let settings =
        [("HEARTH_PARKED", "0"), ("HEARTH_PREFETCH", "false"), ("HEARTH_METRICS_LISTEN", address.as_str())];
    let mut agent = TestAgent::start(dir.path(), &settings).await.unwrap();
    agent.ensure_code().await.unwrap();
    let id = agent.restore(false).await.unwrap();
    agent.python(id, "print(sum(range(1000)))").await.unwrap();
    let served = agent.get(id).await.unwrap().faults;
    // Its end is counted at once.
    agent.destroy(id).await.unwrap();
    let text = scrape(&address).unwrap();
    let count = value(&text, &format!("{FAULTS}_count"), "");
    assert!(count >= served as f64 && served > 100, "{count} of {served}");
    assert_eq!(count, value(&text, "hearth_agent_faults_total", ""));
    let buckets = values(&text, &format!("{FAULTS}_bucket"));
    assert_eq!(buckets.len(), hearth_service::metrics::FAULT_MICROS.len() + 1, "{buckets:?}");
    assert!(buckets.is_sorted_by(|one, next| one.1 <= next.1), "{buckets:?}");
    let quick = value(&text, &format!("{FAULTS}_bucket"), "{le=\"0.005\"}");
    assert!(quick > count / 2.0, "most are served within 5 ms: {buckets:?}");
    let (sum, exact) = (
        value(&text, &format!("{FAULTS}_sum"), ""),
        value(&text, "hearth_agent_fault_serve_microseconds_total", "") / 1e6,
    );
    assert!(exact <= sum * 1.01, "a bucket's bound stands for its times: {exact} and {sum}");
    agent.process.stop().unwrap();
    assert_eq!(leftovers::of(dir.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_go_out_are_told_by_what_capsules_may_reach() {
    let dir = folder();
    let internet = Internet::new().unwrap();
    let host: OwnedFd = internet.host.try_clone().unwrap();
    let address = "127.0.0.1:9101";
    let settings = [("HEARTH_PARKED", "0"), ("HEARTH_METRICS_LISTEN", address)];
    let mut agent = network::start(&internet, dir.path(), &settings).await;
    let open = NetworkPolicy { internet: true, ..Default::default() };
    let listed = NetworkPolicy { allow: vec![format!("{WEB}/32")], ..Default::default() };
    let (open, listed, closed) = (
        network::restore(&mut agent, Some(open)).await,
        network::restore(&mut agent, Some(listed)).await,
        network::restore(&mut agent, None).await,
    );
    let web = [format!("{WEB}:80")];
    assert_eq!(network::reach(&mut agent, open, &web).await, web);
    for _ in 0..20 {
        assert_eq!(network::reach(&mut agent, listed, &web).await, web);
    }
    assert_eq!(network::reach(&mut agent, closed, &web).await, Vec::<String>::new());
    for id in [open, listed, closed] {
        agent.destroy(id).await.unwrap();
    }
    let text = inside(&host, move || scrape(address)).unwrap();
    let bytes = |policy: &str, direction: &str| {
        value(&text, EGRESS, &format!("{{policy=\"{policy}\",direction=\"{direction}\"}}"))
    };
    for direction in ["sent", "received"] {
        let [internet, list] = ["internet", "list"].map(|policy| bytes(policy, direction));
        // A connection and a short answer each; our own calls to the guest are kilobytes and not among them.
        assert!(
            (100.0..5_000.0).contains(&internet),
            "{direction}: {internet} in {:?}",
            values(&text, EGRESS)
        );
        assert!(list > 5.0 * internet, "{direction}: {list} and {internet}");
    }
    // Two neighbours find each other's addresses also where nothing is let through.
    assert!(bytes("none", "received") < bytes("internet", "received") / 2.0, "{:?}", values(&text, EGRESS));
    network::stop(agent, &internet, dir.path());
}
