//! The `hearth-loadtest` command.

use clap::{Parser, Subcommand};
use hearth_loadtest::{
    bench::{self, BenchArgs},
    lifecycle::{self, LifecycleArgs},
};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "hearth-loadtest", version, about = "Measures Hearth")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a Hearth of its own, measure the ways to an answer and their floors, write bench.json, stop
    Bench(BenchArgs),
    /// The same for pause, resume, fork and fifty capsules at once; writes bench-lifecycle.json
    Lifecycle(LifecycleArgs),
}

// One thread: the measuring side must not compete with what it measures for two cores.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Bench(args) => bench::run(args).await,
        Command::Lifecycle(args) => lifecycle::run(args).await,
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("hearth-loadtest: {error:#}");
        ExitCode::FAILURE
    })
}
