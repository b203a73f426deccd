//! (pure) What a capsule may reach: the request's words, checked, and which set elements they become.

use super::plan;
use serde::{Deserialize, Serialize};
use std::{fmt, net::Ipv4Addr, str::FromStr};

/// Entries of one list.
pub const CIDRS_MAX: usize = 64;

/// What no policy opens by itself. An allow list may open what is marked so; the rest is never reached.
pub const BLOCKED: [(Cidr, Opening); 13] = [
    (Cidr::new([0, 0, 0, 0], 8), Opening::Never),
    (Cidr::new([10, 0, 0, 0], 8), Opening::ByList),
    (Cidr::new([100, 64, 0, 0], 10), Opening::ByList),
    (Cidr::new([127, 0, 0, 0], 8), Opening::Never),
    // Link-local, and with it the metadata services of clouds.
    (Cidr::new([169, 254, 0, 0], 16), Opening::Never),
    (Cidr::new([172, 16, 0, 0], 12), Opening::ByList),
    (Cidr::new([192, 0, 0, 0], 24), Opening::Never),
    // Relays from IPv4 to IPv6.
    (Cidr::new([192, 88, 99, 0], 24), Opening::Never),
    (Cidr::new([192, 168, 0, 0], 16), Opening::ByList),
    // Benchmarks; the way out of our router has its addresses from here.
    (Cidr::new([198, 18, 0, 0], 15), Opening::Never),
    (Cidr::new([224, 0, 0, 0], 4), Opening::Never),
    (Cidr::new([240, 0, 0, 0], 4), Opening::Never),
    // One metadata service that is not link-local.
    (Cidr::new([168, 63, 129, 16], 32), Opening::Never),
];

/// How a blocked range can be reached after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// By an entry of an allow list that lies in it.
    ByList,
    /// Not at all.
    Never,
}

/// A range of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    first: u32,
    prefix: u8,
}

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Neither an address nor a range.
    #[error("`{0}` is not an IPv4 address or range such as 203.0.113.0/24")]
    Syntax(String),
    /// IPv6.
    #[error("`{0}` is IPv6, which capsules do not have")]
    Ipv6(String),
    /// Bits behind the prefix are set.
    #[error("`{0}` has bits behind its prefix: write {1}")]
    HostBits(String, Cidr),
}

impl Cidr {
    /// A range; bits behind the prefix are cut off.
    pub const fn new(address: [u8; 4], prefix: u8) -> Self {
        Self { first: u32::from_be_bytes(address) & mask(prefix), prefix }
    }

    /// Its first address.
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first)
    }

    /// Its last address.
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first | !mask(self.prefix))
    }

    /// Whether all of `other` is in it.
    pub fn contains(self, other: Self) -> bool {
        self.prefix <= other.prefix && other.first & mask(self.prefix) == self.first
    }
}

const fn mask(prefix: u8) -> u32 {
    // A shift by the whole width is refused, and means all bits.
    match u32::MAX.checked_shr(prefix as u32) {
        Some(host) => !host,
        None => u32::MAX,
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.prefix)
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let syntax = || CidrError::Syntax(text.chars().take(64).collect());
        if text.contains(':') {
            return Err(CidrError::Ipv6(text.chars().take(64).collect()));
        }
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| syntax())?;
        // Digits only: `parse` would also take a sign.
        let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().ok().filter(|prefix| digits && *prefix <= 32).ok_or_else(syntax)?;
        let cidr = Self::new(address.octets(), prefix);
        if cidr.first() != address {
            return Err(CidrError::HostBits(text.to_owned(), cidr));
        }
        Ok(cidr)
    }
}

/// What a capsule may reach. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Every address but those that are blocked.
    #[serde(default)]
    pub internet: bool,
    /// These too; private ranges only when named.
    #[serde(default)]
    pub allow: Vec<Cidr>,
    /// Never these, whatever the other two say.
    #[serde(default)]
    pub deny: Vec<Cidr>,
}

/// Why a policy is refused: which list, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct PolicyError {
    /// `network.allow` or `network.deny`.
    pub field: &'static str,
    /// For people.
    pub reason: String,
}

impl Policy {
    /// Reads the lists of a request.
    pub fn parse(internet: bool, allow: &[String], deny: &[String]) -> Result<Self, PolicyError> {
        let allow = list("network.allow", allow)?;
        let deny = list("network.deny", deny)?;
        for cidr in &allow {
            let closed =
                BLOCKED.iter().find(|(range, opening)| *opening == Opening::Never && range.contains(*cidr));
            if let Some((range, _)) = closed {
                let reason = format!("{cidr} is in {range}, which no capsule can reach; leave it out");
                return Err(PolicyError { field: "network.allow", reason });
            }
        }
        Ok(Self { internet, allow, deny })
    }

    /// What it comes to, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self { internet: true, .. } => "internet",
            Self { allow, .. } if !allow.is_empty() => "list",
            Self { .. } => "none",
        }
    }

    /// Whether anything can be reached.
    pub fn has_egress(&self) -> bool {
        self.internet || !self.allow.is_empty()
    }

    /// The elements that let a slot reach what the policy says.
    pub fn elements(&self, slot: u32) -> Vec<Element> {
        if !self.has_egress() {
            return Vec::new();
        }
        let source = plan::address(slot);
        let range = |set: Set, cidr: Cidr| Element {
            set,
            key: concat(source, cidr.first()),
            end: Some(concat(source, cidr.last())),
        };
        let alone = |set: Set| Element { set, key: source.octets().to_vec(), end: None };
        let mut elements = vec![alone(Set::Egress)];
        if self.internet {
            elements.push(alone(Set::Internet));
        }
        let by_list = |cidr: &Cidr| {
            BLOCKED.iter().any(|(range, opening)| *opening == Opening::ByList && range.contains(*cidr))
        };
        let (opened, allowed): (Vec<Cidr>, Vec<Cidr>) = self.allow.iter().partition(|cidr| by_list(cidr));
        elements.extend(disjoint(opened).into_iter().map(|cidr| range(Set::Opened, cidr)));
        elements.extend(disjoint(allowed).into_iter().map(|cidr| range(Set::Allowed, cidr)));
        elements.extend(disjoint(self.deny.clone()).into_iter().map(|cidr| range(Set::Denied, cidr)));
        elements
    }
}

/// Sets of the router's table, in the order in which its rules ask them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Set {
    /// Slots that may ask for names: those that reach anything.
    Egress,
    /// Slot and destination: never.
    Denied,
    /// Slot and destination: although it is private.
    Opened,
    /// Slot and destination: unless it is blocked.
    Allowed,
    /// Slots that reach all that is not blocked.
    Internet,
}

impl Set {
    /// Its name in the ruleset.
    pub fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Denied => "denied",
            Self::Opened => "opened",
            Self::Allowed => "allowed",
            Self::Internet => "internet",
        }
    }
}

/// An element of a set: a key, or a range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Which set.
    pub set: Set,
    /// The key, or the first of them.
    pub key: Vec<u8>,
    /// The last of them.
    pub end: Option<Vec<u8>>,
}

fn concat(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    [source.octets(), destination.octets()].concat()
}

fn list(field: &'static str, texts: &[String]) -> Result<Vec<Cidr>, PolicyError> {
    if CIDRS_MAX < texts.len() {
        let reason = format!("{} entries; at most {CIDRS_MAX} are taken", texts.len());
        return Err(PolicyError { field, reason });
    }
    let parsed = texts.iter().map(|text| text.parse());
    parsed.collect::<Result<_, CidrError>>().map_err(|error| PolicyError { field, reason: error.to_string() })
}

/// The same addresses in ranges that do not overlap: the kernel takes no others.
fn disjoint(mut cidrs: Vec<Cidr>) -> Vec<Cidr> {
    // Two ranges either are apart or one is in the other, which then comes later.
    cidrs.sort_unstable();
    let mut kept: Vec<Cidr> = Vec::with_capacity(cidrs.len());
    for cidr in cidrs {
        if !kept.last().is_some_and(|last| last.contains(cidr)) {
            kept.push(cidr);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn ranges_are_read_and_written() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "203.0.113.7/32", "128.0.0.0/1"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(cidr("203.0.113.7").to_string(), "203.0.113.7/32");
        assert_eq!(cidr("10.0.0.0/8").last(), Ipv4Addr::new(10, 255, 255, 255));
        assert_eq!(cidr("0.0.0.0/0").last(), Ipv4Addr::BROADCAST);
        assert_eq!(cidr("1.2.3.4").last(), Ipv4Addr::new(1, 2, 3, 4));
    }

    #[test]
    fn a_bad_range_says_what_to_write() {
        for text in ["", "10", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "a.b.c.d", "10.0.0.0/8/8"] {
            assert!(matches!(text.parse::<Cidr>(), Err(CidrError::Syntax(_))), "{text}");
        }
        assert!("10.0.0.1/8".parse::<Cidr>().unwrap_err().to_string().contains("10.0.0.0/8"));
        assert!("::1".parse::<Cidr>().unwrap_err().to_string().contains("IPv6"));
    }

    #[test]
    fn lists_are_bounded_and_named() {
        let many = vec!["1.2.3.4".to_owned(); CIDRS_MAX + 1];
        assert_eq!(Policy::parse(true, &many, &[]).unwrap_err().field, "network.allow");
        assert_eq!(Policy::parse(true, &[], &many).unwrap_err().field, "network.deny");
        assert_eq!(Policy::parse(true, &[], &texts(&["x"])).unwrap_err().field, "network.deny");
    }

    #[test]
    fn what_is_never_reached_cannot_be_allowed() {
        for never in ["169.254.169.254", "127.0.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", "198.18.0.1"]
        {
            assert!(Policy::parse(false, &texts(&[never]), &[]).is_err(), "{never}");
        }
        for private in ["10.1.0.0/16", "192.168.0.0/16", "172.20.0.0/14", "100.64.0.0/10", "0.0.0.0/0"] {
            assert!(Policy::parse(false, &texts(&[private]), &[]).is_ok(), "{private}");
        }
    }

    #[test]
    fn a_policy_without_egress_has_no_elements() {
        assert!(Policy::default().elements(1).is_empty());
        let only_deny = Policy::parse(false, &[], &texts(&["1.0.0.0/8"])).unwrap();
        assert_eq!(only_deny.kind(), "none");
        assert!(!only_deny.has_egress() && only_deny.elements(1).is_empty());
    }

    #[test]
    fn only_a_private_entry_opens_private_ranges() {
        let sets = |policy: &Policy| -> Vec<Set> {
            policy.elements(1).into_iter().map(|element| element.set).collect()
        };
        let all = Policy::parse(false, &texts(&["0.0.0.0/0"]), &[]).unwrap();
        assert_eq!(sets(&all), [Set::Egress, Set::Allowed]);
        let private = Policy::parse(true, &texts(&["10.1.0.0/16"]), &texts(&["10.1.1.0/24"])).unwrap();
        assert_eq!(sets(&private), [Set::Egress, Set::Internet, Set::Opened, Set::Denied]);
        // Wider than what is private: its public part only.
        let wider = Policy::parse(false, &texts(&["172.0.0.0/8"]), &[]).unwrap();
        assert_eq!(sets(&wider), [Set::Egress, Set::Allowed]);
    }

    #[test]
    fn ranges_of_elements_do_not_overlap() {
        let nested = texts(&["203.0.113.0/25", "203.0.113.0/24", "203.0.113.9", "203.0.113.0/24", "8.8.8.8"]);
        let policy = Policy::parse(false, &nested, &[]).unwrap();
        assert_eq!(disjoint(policy.allow.clone()), [cidr("8.8.8.8"), cidr("203.0.113.0/24")]);
        assert_eq!(policy.elements(5).len(), 3);
    }

    #[test]
    fn a_policy_survives_its_record() {
        let policy = Policy::parse(true, &texts(&["10.0.0.0/8"]), &texts(&["1.1.1.1"])).unwrap();
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(text, r#"{"internet":true,"allow":["10.0.0.0/8"],"deny":["1.1.1.1/32"]}"#);
        assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
        assert_eq!(serde_json::from_str::<Policy>("{}").unwrap(), Policy::default());
    }
}
