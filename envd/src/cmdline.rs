//! (pure) What envd reads from the kernel command line: `hearth.ip=ADDR/PREFIX hearth.gw=ADDR hearth.dns=ADDR,…`.
//!
//! The kernel takes words with a dot in their name for module parameters and leaves them alone, so none of them
//! reaches PID 1 as an argument or an environment variable.

use std::net::Ipv4Addr;

/// The guest's network, the same constants in every capsule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Prefix length of its network, 0 to 32.
    pub prefix: u8,
    /// Default gateway; without it the guest reaches its own network only.
    pub gateway: Option<Ipv4Addr>,
    /// Resolvers in order of preference.
    pub resolvers: Vec<Ipv4Addr>,
}

/// Why the command line was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// There is no `hearth.ip`, so nobody could reach envd.
    #[error("the kernel command line has no hearth.ip=ADDR/PREFIX")]
    NoAddress,
    /// A value is not what its key asks for.
    #[error("the kernel command line has a bad value: {key}={value}")]
    Bad {
        /// The key, e.g. `hearth.gw`.
        key: &'static str,
        /// Its value as found.
        value: String,
    },
}

impl Network {
    /// Reads the network from a kernel command line. The last of repeated keys wins, as it does in the kernel.
    pub fn parse(cmdline: &str) -> Result<Self, CmdlineError> {
        let address = value(cmdline, "hearth.ip").ok_or(CmdlineError::NoAddress)?;
        let (address, prefix) = subnet(address).ok_or_else(|| bad("hearth.ip", address))?;
        let gateway = value(cmdline, "hearth.gw")
            .map(|text| text.parse().map_err(|_| bad("hearth.gw", text)))
            .transpose()?;
        let resolvers = match value(cmdline, "hearth.dns") {
            None | Some("") => Vec::new(),
            Some(list) => list
                .split(',')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .map_err(|_| bad("hearth.dns", list))?,
        };
        Ok(Self { address, prefix, gateway, resolvers })
    }
}

fn value<'a>(cmdline: &'a str, key: &str) -> Option<&'a str> {
    cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')).next_back()
}

fn subnet(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    Some((address.parse().ok()?, prefix))
}

fn bad(key: &'static str, value: &str) -> CmdlineError {
    CmdlineError::Bad { key, value: value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_line_is_read() {
        let line =
            "console=ttyS0 hearth.ip=10.0.0.2/30 hearth.gw=10.0.0.1 hearth.dns=1.1.1.1,8.8.8.8 quiet\n";
        assert_eq!(
            Network::parse(line),
            Ok(Network {
                address: Ipv4Addr::new(10, 0, 0, 2),
                prefix: 30,
                gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
                resolvers: vec![Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)],
            })
        );
    }

    #[test]
    fn gateway_and_resolvers_may_be_absent_and_the_last_key_wins() {
        let network = Network::parse("hearth.ip=10.0.0.9/8 hearth.dns= hearth.ip=10.0.0.2/30").unwrap();
        assert_eq!((network.address.octets()[3], network.prefix), (2, 30));
        assert_eq!((network.gateway, network.resolvers.len()), (None, 0));
    }

    #[test]
    fn bad_values_are_named() {
        assert_eq!(Network::parse("quiet xhearth.ip=1.2.3.4/8"), Err(CmdlineError::NoAddress));
        for (line, key) in [
            ("hearth.ip=10.0.0.2", "hearth.ip"),
            ("hearth.ip=10.0.0.2/33", "hearth.ip"),
            ("hearth.ip=10.0.0.2/24 hearth.gw=x", "hearth.gw"),
            ("hearth.ip=10.0.0.2/24 hearth.dns=1.1.1.1,", "hearth.dns"),
        ] {
            assert!(
                matches!(Network::parse(line), Err(CmdlineError::Bad { key: k, .. }) if k == key),
                "{line}"
            );
        }
    }
}
