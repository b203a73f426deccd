//! The rulesets: the router's and the host's, loaded once as text by `nft`; a slot's own, sent by netlink.

use super::{
    nft::{Batch, Hook, attr, nested, number, text},
    plan,
    policy::BLOCKED,
};
use crate::vmm::machine::GuestNetwork;
use std::{
    io::{self, Write},
    net::Ipv4Addr,
    process::{Command, Stdio},
};

/// Connections that a slot may have open at the same time.
pub const CONNECTIONS_MAX: u32 = 1024;
/// Bytes per second that a slot may send, and as many to receive.
const MBYTES_PER_SECOND: u32 = 64;
/// Packets per second that a slot may send.
const PACKETS_PER_SECOND: u32 = 40_000;
/// Questions for names per second that a slot may ask.
const QUESTIONS_PER_SECOND: u32 = 100;
/// Name of our table in namespaces of our own.
pub const TABLE: &str = "hearth";

/// (pure) The router's ruleset. Loading it again empties the sets: then nothing leads out until policies are applied.
pub fn router() -> String {
    let blocked = BLOCKED.iter().map(|(range, _)| range.to_string()).collect::<Vec<_>>().join(", ");
    let (up, gateway, slots) = (plan::UP, plan::GATEWAY, plan::SLOTS_MAX);
    // Guests of one snapshot choose the same source ports: on the way out they are drawn anew, or a server that remembers
    // the connection of one would refuse another.
    // Every packet on its way out is judged, also those of a connection that is open: a policy that is withdrawn ends
    // it. Answers come in by the connection they belong to.
    format!(
        "flush ruleset
table ip {TABLE} {{
  set egress {{ type ipv4_addr; }}
  set internet {{ type ipv4_addr; }}
  set denied {{ type ipv4_addr . ipv4_addr; flags interval; }}
  set opened {{ type ipv4_addr . ipv4_addr; flags interval; }}
  set allowed {{ type ipv4_addr . ipv4_addr; flags interval; }}
  set blocked {{ type ipv4_addr; flags interval; elements = {{ {blocked} }} }}
  set received {{ type ipv4_addr; size {slots}; flags dynamic,timeout; timeout 1m; }}
  set asked {{ type ipv4_addr; size {slots}; flags dynamic,timeout; timeout 1m; }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname {{ \"lo\", \"{up}\" }} drop
    ip saddr @egress ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 jump names
    reject with icmp admin-prohibited
  }}
  chain names {{
    add @asked {{ ip saddr limit rate over {QUESTIONS_PER_SECOND}/second burst {QUESTIONS_PER_SECOND} packets }} drop
    accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state invalid drop
    iifname \"{up}\" oifname != \"{up}\" ct state established,related jump inward
    iifname \"{up}\" drop
    oifname \"{up}\" jump outward
    reject with icmp admin-prohibited
  }}
  chain inward {{
    add @received {{ ip daddr limit rate over {MBYTES_PER_SECOND} mbytes/second burst {MBYTES_PER_SECOND} mbytes }} drop
    accept
  }}
  chain outward {{
    ip saddr . ip daddr @denied reject with icmp admin-prohibited
    ip saddr . ip daddr @opened accept
    ip daddr @blocked reject with icmp admin-prohibited
    ip saddr . ip daddr @allowed accept
    ip saddr @internet accept
  }}
  chain out {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{up}\" masquerade fully-random
  }}
}}
"
    )
}

/// (pure) The host's ruleset: one table, about one interface. The host itself is not to be reached, by none of its
/// addresses, and before another table could send such a packet elsewhere.
pub fn host(name: &str, router: Ipv4Addr) -> String {
    format!(
        "table ip {name}
delete table ip {name}
table ip {name} {{
  chain pre {{
    type filter hook prerouting priority raw; policy accept;
    iifname \"{name}\" fib daddr type != unicast drop
    iifname \"{name}\" ip saddr != {router} drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname \"{name}\" drop
  }}
  chain out {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {router} oifname != \"{name}\" masquerade
  }}
}}
"
    )
}

/// Loads a ruleset in the calling thread's network namespace.
pub fn load(text: &str) -> io::Result<()> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("nft (package nftables): {error}")))?;
    let written = nft.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let output = nft.wait_with_output()?;
    if output.status.success() {
        return written;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = said.lines().take(3).collect::<Vec<_>>().join(" | ");
    Err(io::Error::other(format!("nft refused the ruleset: {lines}")))
}

/// (pure) A slot's own table. The guest's address, the same in every slot, becomes the slot's. What a guest may send is
/// bounded here, where its own VMM still does the work: behind the link everybody shares a processor's queue. The
/// connections that it may have open are counted where they would be kept.
pub fn slot() -> Batch {
    const FORWARD: Hook = Hook { kind: "filter", number: 2, priority: 0 };
    const POSTROUTING: Hook = Hook { kind: "nat", number: 4, priority: 100 };
    let mut batch = Batch::default();
    batch.new_table(TABLE);
    batch.new_chain(TABLE, "forward", FORWARD);
    let from_guest = |rest: &[Vec<u8>]| [&[name(META_IIFNAME), is(GuestNetwork::TAP)], rest].concat();
    for limit in [
        limit_over(u64::from(PACKETS_PER_SECOND), PACKETS_PER_SECOND, Counts::Packets),
        limit_over(u64::from(MBYTES_PER_SECOND) << 20, MBYTES_PER_SECOND << 20, Counts::Bytes),
    ] {
        batch.new_rule(TABLE, "forward", &from_guest(&[limit, drop()]));
    }
    let too_many = [state(), mask(CT_NEW), is_not_zero(), connections_over(), drop()];
    batch.new_rule(TABLE, "forward", &from_guest(&too_many));
    batch.new_chain(TABLE, "out", POSTROUTING);
    batch.new_rule(TABLE, "out", &[name(META_OIFNAME), is(plan::UP), expression("masq", &[])]);
    batch
}

const REGISTER: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_NEW: u32 = 8;

fn expression(kind: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, kind), nested(2, data)])
}

fn value(bytes: &[u8]) -> Vec<u8> {
    attr(1, bytes)
}

fn name(key: u32) -> Vec<u8> {
    expression("meta", &[number(2, key), number(1, REGISTER)])
}

/// Compares the register with an interface's name.
fn is(interface: &str) -> Vec<u8> {
    let mut padded = [0; libc::IFNAMSIZ];
    for (to, from) in padded.iter_mut().zip(interface.bytes()) {
        *to = from;
    }
    expression("cmp", &[number(1, REGISTER), number(2, 0), nested(3, &[value(&padded)])])
}

fn state() -> Vec<u8> {
    expression("ct", &[number(2, 0), number(1, REGISTER)])
}

fn mask(bits: u32) -> Vec<u8> {
    let parts = [
        number(1, REGISTER),
        number(2, REGISTER),
        number(3, 4),
        nested(4, &[value(&bits.to_ne_bytes())]),
        nested(5, &[value(&0_u32.to_ne_bytes())]),
    ];
    expression("bitwise", &parts)
}

fn is_not_zero() -> Vec<u8> {
    expression("cmp", &[number(1, REGISTER), number(2, 1), nested(3, &[value(&0_u32.to_ne_bytes())])])
}

/// What a rate is of, `NFT_LIMIT_…`.
#[derive(Clone, Copy)]
enum Counts {
    Packets = 0,
    Bytes = 1,
}

/// Matches what is above a rate per second.
fn limit_over(rate: u64, burst: u32, counts: Counts) -> Vec<u8> {
    let parts = [
        attr(1, &rate.to_be_bytes()),
        attr(2, &1_u64.to_be_bytes()),
        number(3, burst),
        number(4, counts as u32),
        number(5, INVERTED),
    ];
    expression("limit", &parts)
}

/// "Over", not "up to".
const INVERTED: u32 = 1;

fn connections_over() -> Vec<u8> {
    expression("connlimit", &[number(1, CONNECTIONS_MAX), number(2, INVERTED)])
}

fn drop() -> Vec<u8> {
    const VERDICT: u32 = 0;
    const DROP: u32 = 0;
    expression("immediate", &[number(1, VERDICT), nested(2, &[nested(2, &[number(1, DROP)])])])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::nft::Netfilter;

    fn in_a_namespace<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
        .join()
        .unwrap()
    }

    fn listed() -> String {
        let listed = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        String::from_utf8(listed.stdout).unwrap()
    }

    #[test]
    fn rulesets_load_and_load_again() {
        in_a_namespace(|| {
            for _ in 0..2 {
                load(&router()).unwrap();
                load(&host("hearth-01234567", Ipv4Addr::new(198, 18, 0, 2))).unwrap();
            }
            let listed = listed();
            for (range, _) in BLOCKED {
                // A range of one address is shown as the address.
                let range = range.to_string();
                assert!(listed.contains(range.trim_end_matches("/32")), "{range} in {listed}");
            }
            assert!(load("nonsense").unwrap_err().to_string().contains("nonsense"));
        });
    }

    #[test]
    fn a_slots_table_is_what_nft_would_have_made() {
        let listed = in_a_namespace(|| {
            Netfilter::open().unwrap().apply(&slot()).unwrap();
            listed()
        });
        for rule in [
            "type filter hook forward priority filter; policy accept;",
            "iifname \"tap0\" limit rate over 40000/second burst 40000 packets drop",
            "iifname \"tap0\" limit rate over 64 mbytes/second burst 64 mbytes drop",
            "iifname \"tap0\" ct state new ct count over 1024 drop",
            "type nat hook postrouting priority srcnat; policy accept;",
            "oifname \"up\" masquerade",
        ] {
            assert!(listed.contains(rule), "{rule} in {listed}");
        }
    }

    #[test]
    fn elements_of_a_policy_fit_the_routers_sets() {
        use crate::network::policy::Policy;
        let lists = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let policy =
            Policy::parse(true, &lists(&["10.0.0.0/8", "0.0.0.0/1"]), &lists(&["1.1.1.1", "9.0.0.0/8"]))
                .unwrap();
        let listed = in_a_namespace(move || {
            load(&router()).unwrap();
            let netfilter = Netfilter::open().unwrap();
            for slot in [3, 4] {
                let mut batch = Batch::default();
                for element in policy.elements(slot) {
                    batch.add_element(TABLE, element.set.name(), &element.key, element.end.as_deref());
                }
                netfilter.apply(&batch).unwrap();
                netfilter.apply(&batch).unwrap();
            }
            let mut batch = Batch::default();
            for element in policy.elements(4) {
                batch.delete_element(TABLE, element.set.name(), &element.key, element.end.as_deref());
            }
            netfilter.apply(&batch).unwrap();
            listed()
        });
        for element in ["10.203.64.3 . 10.0.0.0/8", "10.203.64.3 . 0.0.0.0/1", "10.203.64.3 . 1.1.1.1"] {
            assert!(listed.contains(element), "{element} in {listed}");
        }
        assert!(!listed.contains("10.203.64.4"), "{listed}");
    }
}
