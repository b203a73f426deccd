//! What an operator can set, with defaults and their reasons; checked as a whole before a socket is bound.

use hearth_service::socket;
use std::{num::NonZeroUsize, path::PathBuf, thread, time::Duration};

/// Enough warm capsules for one person's agent and its retries; a parked one costs about 45 MB (aim of issue 2).
const TARGET: usize = 4;
/// Two restores keep two cores busy; more only make each one slower.
const REFILLS: usize = 2;
/// Hosts of one pool-manager.
const HOSTS_MAX: usize = 64;
/// Longer than the longest run that the gateway allows by default, and its transfers.
const LEASE_MAX_SEC: u64 = 900;
/// For a caller that names none.
const LEASE_DEFAULT_SEC: u64 = 60;
/// A burst of 100 at about 10 restores a second still gets its turn.
const TAKE_WAIT_MS: u64 = 20_000;
/// A private cluster that recovers after a crash needs seconds, not minutes.
const DATABASE_WAIT_SEC: u64 = 60;

/// Settings of pool-manager. Argument ids are prefixed, so that one command can flatten every service's settings.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Data folder: sockets whose place is not given are here.
    #[arg(id = "pool_dir", long = "dir", env = "HEARTH_DIR", default_value = "/var/lib/hearth")]
    pub data_dir: PathBuf,

    /// Unix socket that pool-manager serves on (mode 0600); by default `pool.sock` in the data folder.
    #[arg(id = "pool_socket", long = "pool-socket", env = "HEARTH_POOL_SOCKET")]
    pub socket: Option<PathBuf>,

    /// The hosts' agents, each `unix:/path`, with commas between them; by default `agent/agent.sock` in the data folder.
    #[arg(id = "pool_agent_endpoint", long = "agent-endpoint", env = "HEARTH_AGENT_ENDPOINT")]
    pub agent_endpoint: Option<String>,

    /// Postgres, `postgres://…`. Must be set in the end; whoever embeds this service may set it later.
    #[arg(
        id = "pool_database_url",
        long = "pool-database-url",
        env = "DATABASE_URL",
        hide_env_values = true,
        default_value = ""
    )]
    pub database_url: String,

    /// How long the start waits for the database, in seconds.
    #[arg(id = "pool_database_wait_sec", long = "pool-database-wait-sec", env = "HEARTH_DATABASE_WAIT_SEC")]
    #[arg(default_value_t = DATABASE_WAIT_SEC)]
    pub database_wait_sec: u64,

    /// Template to keep warm.
    #[arg(
        id = "pool_template",
        long = "pool-template",
        env = "HEARTH_POOL_TEMPLATE",
        default_value = "code"
    )]
    pub template: String,

    /// Warm capsules to keep parked.
    #[arg(id = "pool_target", long = "pool-target", env = "HEARTH_POOL_TARGET", default_value_t = TARGET)]
    pub target: usize,

    /// Restores for the pool at once. They wait while somebody waits for a restore.
    #[arg(id = "pool_refills", long = "pool-refills", env = "HEARTH_POOL_REFILLS", default_value_t = REFILLS)]
    pub refills: usize,

    /// Restores on demand (pool misses) at once; 0: one per CPU, at least two.
    #[arg(id = "pool_restores", long = "pool-restores", env = "HEARTH_POOL_RESTORES", default_value_t = 0)]
    pub restores: usize,

    /// How long a pool miss waits for its turn to be restored, in milliseconds.
    #[arg(id = "pool_take_wait_ms", long = "pool-take-wait-ms", env = "HEARTH_POOL_TAKE_WAIT_MS")]
    #[arg(default_value_t = TAKE_WAIT_MS)]
    pub take_wait_ms: u64,

    /// Lease of a one-shot whose caller names none, in seconds.
    #[arg(id = "pool_lease_default_sec", long = "pool-lease-default-sec", env = "HEARTH_LEASE_DEFAULT_SEC")]
    #[arg(default_value_t = LEASE_DEFAULT_SEC)]
    pub lease_default_sec: u64,

    /// Longest lease a caller may ask for, in seconds: the gateway asks for a run's timeout and half a minute. Also
    /// how long a running capsule that nothing explains is left
    /// alone.
    #[arg(id = "pool_lease_max_sec", long = "pool-lease-max-sec", env = "HEARTH_LEASE_MAX_SEC")]
    #[arg(default_value_t = LEASE_MAX_SEC)]
    pub lease_max_sec: u64,
}

/// Everything that is wrong with a [`Config`], one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Defaults for everything but where things are.
    pub fn new(socket: PathBuf, agent_endpoint: String, database_url: String) -> Self {
        Self {
            data_dir: PathBuf::from("/"),
            socket: Some(socket),
            agent_endpoint: Some(agent_endpoint),
            database_url,
            database_wait_sec: DATABASE_WAIT_SEC,
            template: crate::template::alias::CODE.to_owned(),
            target: TARGET,
            refills: REFILLS,
            restores: 0,
            take_wait_ms: TAKE_WAIT_MS,
            lease_default_sec: LEASE_DEFAULT_SEC,
            lease_max_sec: LEASE_MAX_SEC,
        }
    }

    /// Checks ranges and relations.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        let mut demand = |holds: bool, fault: &str| {
            if !holds {
                faults.push(fault.to_owned());
            }
        };
        demand(self.socket().is_absolute(), "HEARTH_POOL_SOCKET must be an absolute path");
        demand(
            self.agent_endpoints()
                .iter()
                .all(|agent| agent.strip_prefix("unix:").is_some_and(|path| path.starts_with('/'))),
            "HEARTH_AGENT_ENDPOINT must be `unix:/absolute/path`, several with commas between them",
        );
        demand(
            (1..=HOSTS_MAX).contains(&self.agent_endpoints().len()),
            "HEARTH_AGENT_ENDPOINT must name 1 to 64 agents",
        );
        let mut agents = self.agent_endpoints();
        agents.sort_unstable();
        agents.dedup();
        demand(
            agents.len() == self.agent_endpoints().len(),
            "HEARTH_AGENT_ENDPOINT must name each agent once",
        );
        demand(!self.database_url.is_empty(), "DATABASE_URL must name a Postgres database");
        demand(self.target <= crate::pool::TARGET_MAX, "HEARTH_POOL_TARGET must be at most 512");
        demand((1..=64).contains(&self.refills), "HEARTH_POOL_REFILLS must be between 1 and 64");
        demand(self.restores <= 256, "HEARTH_POOL_RESTORES must be at most 256");
        demand(self.take_wait_ms >= 1, "HEARTH_POOL_TAKE_WAIT_MS must be at least 1");
        demand(self.lease_default_sec >= 1, "HEARTH_LEASE_DEFAULT_SEC must be at least 1");
        demand(
            (self.lease_default_sec..=86_400).contains(&self.lease_max_sec),
            "HEARTH_LEASE_MAX_SEC must be between HEARTH_LEASE_DEFAULT_SEC and 86400",
        );
        if faults.is_empty() { Ok(()) } else { Err(ConfigError(faults)) }
    }

    /// Where pool-manager serves.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.data_dir.join("pool.sock"))
    }

    /// Where the hosts' agents serve.
    pub(crate) fn agent_endpoints(&self) -> Vec<String> {
        match &self.agent_endpoint {
            None => vec![socket::endpoint(&self.data_dir.join("agent/agent.sock"))],
            Some(list) => list.split(',').map(|agent| agent.trim().to_owned()).collect(),
        }
    }

    /// Restores on demand at once.
    pub(crate) fn restores(&self) -> usize {
        match self.restores {
            0 => thread::available_parallelism().map_or(2, NonZeroUsize::get).max(2),
            set => set,
        }
    }

    pub(crate) fn take_wait(&self) -> Duration {
        Duration::from_millis(self.take_wait_ms)
    }

    pub(crate) fn lease_default(&self) -> Duration {
        Duration::from_secs(self.lease_default_sec)
    }

    pub(crate) fn lease_max(&self) -> Duration {
        Duration::from_secs(self.lease_max_sec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, CommandFactory, FromArgMatches, Parser};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn the_arguments_are_well_formed_and_their_defaults_pass() {
        let command: Command = Line::command();
        command.clone().debug_assert();
        let matches =
            command.get_matches_from(["pool-manager", "--pool-database-url", "postgres://localhost/h"]);
        let line = Line::from_arg_matches(&matches).unwrap();
        assert_eq!(line.config.check(), Ok(()));
        assert_eq!(line.config.target, TARGET);
        assert_eq!(line.config.socket(), PathBuf::from("/var/lib/hearth/pool.sock"));
        assert_eq!(line.config.agent_endpoints(), ["unix:/var/lib/hearth/agent/agent.sock"]);
        assert!(line.config.restores() >= 2);
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let mut config = Config::new("pool.sock".into(), "http://x".into(), String::new());
        config.target = 1_000_000;
        config.refills = 0;
        config.lease_max_sec = 1;
        let ConfigError(faults) = config.check().unwrap_err();
        assert_eq!(faults.len(), 6, "{faults:?}");
    }

    #[test]
    fn several_agents_are_named_with_commas() {
        let with = |list: &str| Config::new("/pool.sock".into(), list.to_owned(), "postgres://h".to_owned());
        let config = with("unix:/a.sock, unix:/b.sock");
        assert_eq!(config.agent_endpoints(), ["unix:/a.sock", "unix:/b.sock"]);
        assert_eq!(config.check(), Ok(()));
        assert!(with("unix:/a.sock,unix:/a.sock").check().is_err());
        assert!(with("unix:/a.sock,").check().is_err());
    }
}
