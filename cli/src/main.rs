//! The `hearth` command: `hearth up` (everything in one process), the roles one by one, and the tools around them.

mod args;
mod client;
mod demo;
mod doctor;
mod down;
mod ending;
mod keys;
mod postgres;
mod roles;
mod run;
mod tools;
mod up;

use args::{Cli, Command};
use clap::Parser;
use hearth_agent::{engine::kvm, memory::pager};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        // Neither needs a runtime: a pager is one thread per capsule and has to stay small.
        Command::Pager(args) => pager::run(&args).map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Command::KvmProbe => {
            println!("{}", kvm::run_probe());
            Ok(ExitCode::SUCCESS)
        }
        command => on_runtime(command),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("hearth: {error:#}");
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn on_runtime(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => up::up(*args).await,
        Command::Down(args) => down::down(&args).await,
        Command::Demo(args) => demo::demo(*args).await,
        Command::Run(args) => run::run(args).await,
        Command::Tool(tool) => tools::run(tool).await,
        Command::Keys(args) => keys::keys(args).await,
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Agent(args) => roles::agent(*args).await,
        Command::PoolManager(args) => roles::pool_manager(*args).await,
        Command::Gateway(args) => roles::gateway(*args).await,
        Command::Pager(_) | Command::KvmProbe => Ok(ExitCode::SUCCESS),
    }
}
