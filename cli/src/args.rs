//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use hearth_agent::{
    config::AgentConfig,
    engine::{EngineChoice, Programs},
    memory::pager::PagerArgs,
};
use hearth_service::telemetry::{self, LogFormat};
use std::path::PathBuf;

/// The program's arguments.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, about = "Runs untrusted code in microVMs that start from warm snapshots")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything in this process; prints URL, API key and a curl line
    Up(Box<UpArgs>),
    /// Stop a running `hearth up`; users' capsules are kept unless --destroy says otherwise
    Down(DownArgs),
    /// Show it: start, run code in capsules, print answers and timings, stop
    Demo(Box<UpArgs>),
    /// Run code in a fresh capsule and show its output; images are saved
    Run(RunArgs),
    /// Capsules, their processes and files
    #[command(flatten)]
    Tool(crate::tools::args::Tool),
    /// API keys
    Keys(KeysArgs),
    /// What this machine has, what it lacks, and how to get it
    Doctor(DoctorArgs),
    /// Run only the agent
    Agent(Box<AgentArgs>),
    /// Run only pool-manager
    PoolManager(Box<PoolManagerArgs>),
    /// Run only the gateway
    Gateway(Box<GatewayArgs>),
    /// Serve one capsule's page faults (started by the agent)
    #[command(hide = true)]
    Pager(PagerArgs),
    /// Time a tiny guest under KVM (started by the agent and by doctor)
    #[command(hide = true)]
    KvmProbe,
}

/// Where Hearth keeps its things.
#[derive(Debug, Clone, Args)]
pub struct Where {
    /// Data folder
    #[arg(long, env = "HEARTH_DIR", default_value = "/var/lib/hearth")]
    pub dir: PathBuf,
    /// Folder of guest images and templates, keyed by content
    #[arg(long, env = "HEARTH_CACHE", default_value = "/var/cache/hearth")]
    pub cache: PathBuf,
}

/// Stopping.
#[derive(Debug, Clone, Args)]
pub struct DownArgs {
    /// Where things are.
    #[command(flatten)]
    pub place: Where,
    /// End all capsules, paused ones too; named snapshots stay
    #[arg(long)]
    pub destroy: bool,
}

/// How logs look.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What is logged, e.g. `info,hearth_agent=debug`
    #[arg(long, env = "HEARTH_LOG", default_value = "info")]
    pub log: String,
    /// How log lines look
    #[arg(long, env = "HEARTH_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: Format,
}

/// Forms of log lines.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

impl LogArgs {
    /// Starts the log.
    pub fn start(&self) {
        let format = match self.log_format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        };
        telemetry::start(format, &self.log);
    }
}

/// Everything in one process.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Where things are.
    #[command(flatten)]
    pub place: Where,
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// The agent's settings.
    #[command(flatten)]
    pub agent: AgentConfig,
    /// The gateway's settings.
    #[command(flatten)]
    pub gateway: GatewaySettings,
    /// The pools' settings.
    #[command(flatten)]
    pub pool: PoolSettings,
}

/// The gateway's settings that `hearth up` offers; the rest comes from the environment.
#[derive(Debug, Clone, Args)]
pub struct GatewaySettings {
    /// Address of the HTTP API; port 0 takes a free one
    #[arg(long, env = "HEARTH_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: std::net::SocketAddr,
    /// Postgres; without it a private cluster is run from the installed programs
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
}

/// The pools' settings that `hearth up` offers as options; the rest comes from the environment.
#[derive(Debug, Clone, Args)]
pub struct PoolSettings {
    /// Warm capsules to keep parked
    #[arg(long, env = "HEARTH_POOL_TARGET", default_value_t = 4)]
    pub pool_target: usize,
}

/// The agent alone.
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    /// Where things are.
    #[command(flatten)]
    pub place: Where,
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// The agent's settings.
    #[command(flatten)]
    pub agent: AgentConfig,
    /// Its metrics.
    #[command(flatten)]
    pub metrics: MetricsArgs,
}

/// Metrics of a role that has no HTTP API.
#[derive(Debug, Clone, Args)]
pub struct MetricsArgs {
    /// Address for GET /metrics, e.g. 127.0.0.1:9101; off without one. It is open to everybody who reaches it
    #[arg(long, env = "HEARTH_METRICS_LISTEN")]
    pub metrics_listen: Option<std::net::SocketAddr>,
}

/// pool-manager alone.
#[derive(Debug, Clone, Args)]
pub struct PoolManagerArgs {
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// pool-manager's settings.
    #[command(flatten)]
    pub config: hearth_pool_manager::Config,
    /// Its metrics.
    #[command(flatten)]
    pub metrics: MetricsArgs,
}

/// The gateway alone.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// The log.
    #[command(flatten)]
    pub log: LogArgs,
    /// The gateway's settings.
    #[command(flatten)]
    pub config: hearth_gateway::Config,
}

/// How the tools find the service.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// Address of the HTTP API
    #[arg(long, env = "HEARTH_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// API key; without it the first key is read from the data folder
    #[arg(long, env = "HEARTH_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Data folder, where the first key is
    #[arg(long, env = "HEARTH_DIR", default_value = "/var/lib/hearth")]
    pub dir: PathBuf,
    /// For programs: print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// Running code.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// File with the code; `-` is standard input
    #[arg(required_unless_present = "code")]
    pub file: Option<PathBuf>,
    /// The code itself
    #[arg(short = 'c', long = "code", conflicts_with = "file")]
    pub code: Option<String>,
    /// Language of the code
    #[arg(long, default_value = "python")]
    pub language: String,
    /// Time limit in milliseconds
    #[arg(long, default_value_t = 30_000)]
    pub timeout_ms: u64,
    /// Where images are saved
    #[arg(long, default_value = ".")]
    pub out: PathBuf,
}

/// API keys.
#[derive(Debug, Clone, Args)]
pub struct KeysArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub command: KeysCommand,
}

/// What can be done with API keys.
#[derive(Debug, Clone, Subcommand)]
pub enum KeysCommand {
    /// Print the first API key, which is kept in the data folder
    Show {
        /// Data folder
        #[arg(long, env = "HEARTH_DIR", default_value = "/var/lib/hearth")]
        dir: PathBuf,
    },
    /// List the team's keys
    Ls(ClientArgs),
    /// Make a key of the team; it is printed once
    Create {
        /// How the service is found.
        #[command(flatten)]
        client: ClientArgs,
        /// A name for people
        #[arg(long)]
        name: Option<String>,
        /// What it may do: read, run, manage, admin; may be repeated
        #[arg(long = "scope")]
        scopes: Vec<String>,
        /// Seconds until it ends
        #[arg(long)]
        expires_in_sec: Option<u64>,
    },
    /// Revoke a key
    Revoke {
        /// How the service is found.
        #[command(flatten)]
        client: ClientArgs,
        /// Key id
        key: String,
    },
}

/// Looking at the machine.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Where things are.
    #[command(flatten)]
    pub place: Where,
    /// How capsules are executed
    #[arg(long, env = "HEARTH_ENGINE", value_enum, default_value = "auto")]
    pub engine: EngineChoice,
    /// The engines' programs
    #[command(flatten)]
    pub programs: Programs,
    /// For programs: print JSON
    #[arg(long)]
    pub json: bool,
}
