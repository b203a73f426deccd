//! Arguments of the commands around capsules.

use crate::args::ClientArgs;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// What can be done with capsules.
#[derive(Debug, Clone, Subcommand)]
pub enum Tool {
    /// Create a capsule; prints its id
    Create(CreateArgs),
    /// List capsules
    Ps(PsArgs),
    /// Run a command in a capsule; its exit status is this command's
    Exec(ExecArgs),
    /// Open a terminal in a capsule
    Shell(ShellArgs),
    /// Copy files: one of SOURCE and TARGET is CAPSULE:PATH
    Cp(CopyArgs),
    /// Show what a process wrote, or the guest's console
    Logs(LogsArgs),
    /// Put capsules on disk: their memory and processors are given back, nothing is lost
    Pause(CapsulesArgs),
    /// Bring paused capsules back
    Resume(CapsulesArgs),
    /// Destroy capsules
    Rm(CapsulesArgs),
    /// Make running copies of a capsule
    Fork(ForkArgs),
    /// Make a capsule what one of its own snapshots was
    Rollback(RollbackArgs),
    /// Snapshots: create, list, remove
    Snapshot(SnapshotArgs),
    /// Addresses of a capsule's ports; open them to everybody, or close them
    Ports(PortsArgs),
    /// Teams and their keys; needs a key with the scope `platform`
    Teams(TeamsArgs),
    /// Users; needs a key with the scope `platform`
    Users(UsersArgs),
}

/// Creating.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Template or snapshot to start from
    #[arg(long)]
    pub template: Option<String>,
    /// A name for people
    #[arg(long)]
    pub name: Option<String>,
    /// Least number of virtual processors
    #[arg(long)]
    pub vcpus: Option<u32>,
    /// Least memory in MiB
    #[arg(long)]
    pub memory_mb: Option<u64>,
    /// Size of its disk in MiB
    #[arg(long)]
    pub disk_mb: Option<u64>,
    /// Seconds without use after which it is paused or destroyed
    #[arg(long)]
    pub timeout: Option<u64>,
    /// What happens then
    #[arg(long, value_enum)]
    pub timeout_action: Option<TimeoutAction>,
    /// Any use brings it back from a pause
    #[arg(long)]
    pub auto_resume: bool,
    /// none, internet, or IPv4 ranges that it may reach, e.g. 10.1.0.0/16,203.0.113.7
    #[arg(long)]
    pub network: Option<String>,
    /// NAME=VALUE for everything that runs in it; may be repeated
    #[arg(long = "env", short = 'e', value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// KEY=VALUE labels; may be repeated
    #[arg(long = "metadata", short = 'm', value_parser = pair)]
    pub metadata: Vec<(String, String)>,
    /// Port that is open to everybody; may be repeated
    #[arg(long = "public-port")]
    pub public_ports: Vec<u16>,
}

/// What happens to an unused capsule.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TimeoutAction {
    /// Put on disk
    Pause,
    /// Destroyed
    Destroy,
}

/// Listing.
#[derive(Debug, Clone, Args)]
pub struct PsArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Only these, e.g. running,paused; stopped and error are shown only when named
    #[arg(long)]
    pub status: Option<String>,
    /// Only capsules with this label; may be repeated
    #[arg(long = "metadata", short = 'm', value_parser = pair)]
    pub metadata: Vec<(String, String)>,
    /// Print ids only
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

/// Running a command.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Working directory
    #[arg(long)]
    pub cwd: Option<String>,
    /// User in the capsule
    #[arg(long)]
    pub user: Option<String>,
    /// NAME=VALUE; may be repeated
    #[arg(long = "env", short = 'e', value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    pub stdin: bool,
    /// Start it, print pid and tag, and leave it alone
    #[arg(long, short = 'd', conflicts_with = "stdin")]
    pub background: bool,
    /// Name by which the process is found again
    #[arg(long)]
    pub tag: Option<String>,
    /// Capsule id
    pub capsule: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// A terminal.
#[derive(Debug, Clone, Args)]
pub struct ShellArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Go back to a terminal that was left, by its tag
    #[arg(long)]
    pub tag: Option<String>,
    /// Working directory
    #[arg(long)]
    pub cwd: Option<String>,
    /// User in the capsule
    #[arg(long)]
    pub user: Option<String>,
    /// Capsule id
    pub capsule: String,
    /// Program and arguments instead of bash
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Copying.
#[derive(Debug, Clone, Args)]
pub struct CopyArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Directories with all in them
    #[arg(long, short = 'r')]
    pub recursive: bool,
    /// Owner of what is written in the capsule
    #[arg(long)]
    pub user: Option<String>,
    /// PATH, or CAPSULE:PATH
    pub source: String,
    /// CAPSULE:PATH, or PATH
    pub target: String,
}

/// Output that was kept.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Go on as it writes
    #[arg(long, short = 'f', requires = "process")]
    pub follow: bool,
    /// Capsule id
    pub capsule: String,
    /// Pid or tag; without it the guest's console
    pub process: Option<String>,
}

/// Some capsules.
#[derive(Debug, Clone, Args)]
pub struct CapsulesArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Capsule ids
    #[arg(required = true)]
    pub capsules: Vec<String>,
}

/// Copies.
#[derive(Debug, Clone, Args)]
pub struct ForkArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// How many
    #[arg(long, short = 'n', default_value_t = 1)]
    pub count: u32,
    /// Capsule id
    pub capsule: String,
}

/// Going back.
#[derive(Debug, Clone, Args)]
pub struct RollbackArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Capsule id
    pub capsule: String,
    /// Name of one of its snapshots
    pub snapshot: String,
}

/// Snapshots.
#[derive(Debug, Clone, Args)]
pub struct SnapshotArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: SnapshotCommand,
}

/// What can be done with snapshots.
#[derive(Debug, Clone, Subcommand)]
pub enum SnapshotCommand {
    /// Keep a capsule's state under a name; the capsule goes on
    Create {
        /// Capsule id
        capsule: String,
        /// Name; without it one is made up
        name: Option<String>,
        /// Replace a snapshot of this name
        #[arg(long)]
        overwrite: bool,
    },
    /// List snapshots and templates
    Ls,
    /// Delete a snapshot; capsules that came from it do not need it
    Rm {
        /// Its name
        name: String,
    },
}

/// Ports.
#[derive(Debug, Clone, Args)]
pub struct PortsArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Open this port to everybody; may be repeated
    #[arg(long)]
    pub open: Vec<u16>,
    /// Close this port; may be repeated
    #[arg(long)]
    pub close: Vec<u16>,
    /// Capsule id
    pub capsule: String,
    /// Ports to show the addresses of; without any, those that are open to everybody
    pub ports: Vec<u16>,
}

/// Teams.
#[derive(Debug, Clone, Args)]
pub struct TeamsArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: TeamsCommand,
}

/// What can be done with teams.
#[derive(Debug, Clone, Subcommand)]
pub enum TeamsCommand {
    /// List teams
    Ls,
    /// Make a team
    Create {
        /// Its name
        name: String,
    },
    /// End a team that has no capsules; its keys are revoked
    Rm {
        /// Team id
        team: String,
    },
    /// Make a key of a team
    Key {
        /// Team id
        team: String,
        /// Name of the key
        #[arg(long)]
        name: Option<String>,
    },
    /// List a team's members
    Members {
        /// Team id
        team: String,
    },
    /// Put a user into a team
    Add {
        /// Team id
        team: String,
        /// User id
        user: String,
        /// owner, admin or member
        #[arg(long, default_value = "member")]
        role: String,
    },
    /// Take a user out of a team
    Remove {
        /// Team id
        team: String,
        /// User id
        user: String,
    },
}

/// Users.
#[derive(Debug, Clone, Args)]
pub struct UsersArgs {
    /// How the service is found.
    #[command(flatten)]
    pub client: ClientArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: UsersCommand,
}

/// What can be done with users.
#[derive(Debug, Clone, Subcommand)]
pub enum UsersCommand {
    /// List users
    Ls,
    /// Make a user
    Create {
        /// E-mail address
        email: String,
        /// A name for people
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove a user, and revoke the keys that were made for them
    Rm {
        /// User id
        user: String,
    },
}

/// `NAME=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// The folder or file of the path argument `text`, or none when it names a capsule.
pub fn local(text: &str) -> Option<PathBuf> {
    remote(text).is_none().then(|| PathBuf::from(text))
}

/// Capsule and path of `cl-…:PATH`.
pub fn remote(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(capsule, _)| capsule.starts_with("cl-") && !capsule.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_capsules_are_told_from_others() {
        assert_eq!(remote("cl-1:/a:b"), Some(("cl-1", "/a:b")));
        assert_eq!(remote("cl-1:"), Some(("cl-1", "")));
        for local_path in ["./cl-1:/a", "a:b", "cl-1", "/x"] {
            assert!(local(local_path).is_some(), "{local_path}");
        }
    }

    #[test]
    fn pairs_have_a_name() {
        assert_eq!(pair("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(pair("A").is_err() && pair("=b").is_err());
    }
}
