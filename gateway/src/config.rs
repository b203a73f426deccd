//! What an operator can set, with the defaults and their reasons. Read nowhere else.

use hearth_proto::wire::agent::NetworkPolicy;
use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

/// Loopback: an operator opens the API to others on purpose.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Holds [`FILES_BYTES_MAX`] as base64, plus code, standard input and JSON's own characters.
const BODY_BYTES_MAX: usize = 24 << 20;
/// The guest takes no more code.
const CODE_BYTES_MAX: usize = 1 << 20;
/// All files of one run together. They travel in one gRPC message of at most 16 MiB, with code and standard input.
const FILES_BYTES_MAX: usize = 12 << 20;
/// Ten minutes: longer work belongs into a capsule of its own.
const TIMEOUT_MS_MAX: u64 = 600_000;
/// The guest keeps no more of a stream.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;
/// The longest timeout that a run can have at all.
const RUN_TIMEOUT_MS_MAX: u64 = 3_600_000;
/// The sum of code, files, standard input and environment that still fits one gRPC message.
const MESSAGE_BYTES_MAX: usize = 15 << 20;

/// pool-manager's socket in the data folder.
const POOL_SOCKET: &str = "pool.sock";

/// Settings of the gateway.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "gateway_config")]
pub struct Config {
    /// Address of the HTTP API; port 0 takes a free one
    #[arg(long = "listen", env = "HEARTH_LISTEN", default_value_t = LISTEN)]
    pub listen: SocketAddr,

    /// Postgres, e.g. postgres://user@host/hearth
    #[arg(long = "database-url", env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<DatabaseUrl>,

    /// Most connections to Postgres
    #[arg(long = "database-connections", env = "HEARTH_GATEWAY_DATABASE_CONNECTIONS", default_value_t = 8)]
    pub database_connections: u32,

    /// Where pool-manager listens: unix:/path; by default the socket `pool.sock` in the data folder
    #[arg(long = "pool-manager", env = "HEARTH_POOL_MANAGER")]
    pub pool_manager: Option<String>,

    /// Data folder: the first API key is kept here, in the file `api-key`
    #[arg(long = "dir", env = "HEARTH_DIR", default_value = "/var/lib/hearth")]
    pub data_dir: PathBuf,

    /// Largest request body in bytes
    #[arg(long = "max-body-bytes", env = "HEARTH_MAX_BODY_BYTES", default_value_t = BODY_BYTES_MAX)]
    pub max_body_bytes: usize,

    /// Most code of one run in bytes
    #[arg(long = "max-code-bytes", env = "HEARTH_MAX_CODE_BYTES", default_value_t = CODE_BYTES_MAX)]
    pub max_code_bytes: usize,

    /// Most bytes of all files of one run
    #[arg(long = "max-files-bytes", env = "HEARTH_MAX_FILES_BYTES", default_value_t = FILES_BYTES_MAX)]
    pub max_files_bytes: usize,

    /// Longest time that a caller may give a run or a command, in milliseconds
    #[arg(long = "max-timeout-ms", env = "HEARTH_MAX_TIMEOUT_MS", default_value_t = TIMEOUT_MS_MAX)]
    pub max_timeout_ms: u64,

    /// Most output per stream that a caller may ask for, in bytes
    #[arg(long = "max-output-bytes", env = "HEARTH_MAX_OUTPUT_BYTES", default_value_t = OUTPUT_BYTES_MAX)]
    pub max_output_bytes: u64,

    /// Requests served at the same time; more are answered with 503
    #[arg(long = "max-requests", env = "HEARTH_MAX_REQUESTS", default_value_t = 256)]
    pub max_requests: usize,

    /// Streams open at the same time: terminals, followed processes, downloads, connections to ports
    #[arg(long = "max-streams", env = "HEARTH_MAX_STREAMS", default_value_t = 1024)]
    pub max_streams: usize,

    /// Open client connections; more wait in the listen queue
    #[arg(long = "max-connections", env = "HEARTH_MAX_CONNECTIONS", default_value_t = 4096)]
    pub max_connections: usize,

    /// Calls to one host's agent and streams from it at the same time: each has a connection of its own
    #[arg(long = "agent-channels", env = "HEARTH_AGENT_CHANNELS", default_value_t = 1280)]
    pub agent_channels: usize,

    /// What a new capsule may reach when its creator does not say: none or internet
    #[arg(long = "capsule-network", env = "HEARTH_CAPSULE_NETWORK", default_value = "internet")]
    pub capsule_network: DefaultNetwork,

    /// Requests per second of one key, twice as many at once; 0: no limit
    #[arg(long = "requests-per-sec", env = "HEARTH_REQUESTS_PER_SEC", default_value_t = 1000)]
    pub requests_per_sec: u32,

    /// New capsules per second of one key, one-shot runs included, twice as many at once; 0: no limit
    #[arg(long = "creates-per-sec", env = "HEARTH_CREATES_PER_SEC", default_value_t = 100)]
    pub creates_per_sec: u32,

    /// Seconds of code that a team may run in an hour; 0: no limit
    #[arg(long = "run-seconds-per-hour", env = "HEARTH_RUN_SECONDS_PER_HOUR", default_value_t = 0)]
    pub run_seconds_per_hour: u64,

    /// Most capsules that a team may have running; 0: no limit
    #[arg(long = "team-capsules", env = "HEARTH_TEAM_CAPSULES", default_value_t = 0)]
    pub team_capsules: u32,

    /// Most memory of all running capsules of a team in MiB; 0: no limit
    #[arg(long = "team-memory-mb", env = "HEARTH_TEAM_MEMORY_MB", default_value_t = 0)]
    pub team_memory_mb: u64,

    /// How long requests under way may take at shutdown, in milliseconds
    #[arg(long = "gateway-grace-ms", env = "HEARTH_GATEWAY_GRACE_MS", default_value_t = 10_000)]
    pub grace_ms: u64,
}

impl Config {
    /// Where pool-manager listens.
    pub(crate) fn pool_manager(&self) -> String {
        match &self.pool_manager {
            Some(endpoint) => endpoint.clone(),
            None => hearth_service::socket::endpoint(&self.data_dir.join(POOL_SOCKET)),
        }
    }

    /// Checks the settings as a whole; every fault is one line.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, fault: &str| {
            if !holds {
                faults.push(fault.to_owned());
            }
        };
        check(self.database_url.is_some(), "DATABASE_URL is not set");
        check(self.database_connections > 0, "HEARTH_GATEWAY_DATABASE_CONNECTIONS must be at least 1");
        check(self.data_dir.is_absolute(), "HEARTH_DIR must be an absolute path");
        check(
            (1..=CODE_BYTES_MAX).contains(&self.max_code_bytes),
            "HEARTH_MAX_CODE_BYTES must be from 1 to 1048576",
        );
        check(
            self.max_code_bytes.saturating_add(self.max_files_bytes) <= MESSAGE_BYTES_MAX - (1 << 20),
            "HEARTH_MAX_CODE_BYTES and HEARTH_MAX_FILES_BYTES together must be at most 14 MiB",
        );
        check(self.max_body_bytes >= 1024, "HEARTH_MAX_BODY_BYTES must be at least 1024");
        check(
            (1..=RUN_TIMEOUT_MS_MAX).contains(&self.max_timeout_ms),
            "HEARTH_MAX_TIMEOUT_MS must be from 1 to 3600000",
        );
        check(
            (1..=OUTPUT_BYTES_MAX).contains(&self.max_output_bytes),
            "HEARTH_MAX_OUTPUT_BYTES must be from 1 to 16777216",
        );
        check(self.max_requests > 0, "HEARTH_MAX_REQUESTS must be at least 1");
        check(self.max_streams > 0, "HEARTH_MAX_STREAMS must be at least 1");
        check(self.max_connections > 0, "HEARTH_MAX_CONNECTIONS must be at least 1");
        check(self.agent_channels > 0, "HEARTH_AGENT_CHANNELS must be at least 1");
        faults
    }
}

/// What a new capsule may reach when its creator does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DefaultNetwork {
    /// Nothing.
    None,
    /// The internet where the host has a way out, but no private or special address.
    Internet,
}

impl DefaultNetwork {
    /// The policy. A host without a way out still makes capsules that did not ask for one.
    pub(crate) fn policy(self) -> NetworkPolicy {
        let internet = self == Self::Internet;
        NetworkPolicy { internet, best_effort: internet, ..NetworkPolicy::default() }
    }
}

/// A Postgres URL. It may hold a password, so it does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL as it was given.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(…)")
    }
}

impl FromStr for DatabaseUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            Ok(Self(text.to_owned()))
        } else {
            Err("expected postgres://…")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        config: Config,
    }

    impl Config {
        /// The defaults.
        pub(crate) fn for_tests() -> Self {
            Command::parse_from(["gateway"]).config
        }
    }

    #[test]
    fn the_defaults_lack_only_a_database() {
        let config = Command::parse_from(["gateway"]).config;
        let faults = config.faults();
        assert!(faults.is_empty() || faults == ["DATABASE_URL is not set"], "{faults:?}");
        let config = Command::parse_from(["gateway", "--dir=/x/y"]).config;
        assert_eq!(config.pool_manager(), "unix:/x/y/pool.sock");
    }

    #[test]
    fn all_faults_are_reported_at_once_and_no_password_is_shown() {
        let config = Command::parse_from([
            "gateway",
            "--database-url=postgres://me:geheim@db/hearth",
            "--max-timeout-ms=0",
            "--max-requests=0",
            "--dir=relative",
        ])
        .config;
        assert_eq!(config.faults().len(), 3);
        assert!(!format!("{config:?}").contains("geheim"));
    }
}
