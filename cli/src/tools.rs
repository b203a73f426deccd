//! The commands around capsules, each a use of the public HTTP API and of nothing else.

pub mod args;
mod copy;
mod create;
mod exec;
mod lifecycle;
mod logs;
mod people;
mod ports;
mod ps;
mod shell;
mod snapshots;
mod socket;
mod table;

pub use people::show;

use args::Tool;
use std::process::ExitCode;

/// Runs one of them.
pub async fn run(tool: Tool) -> anyhow::Result<ExitCode> {
    match tool {
        Tool::Create(args) => create::create(args).await,
        Tool::Ps(args) => ps::ps(args).await,
        Tool::Exec(args) => exec::exec(args).await,
        Tool::Shell(args) => shell::shell(args).await,
        Tool::Cp(args) => copy::copy(args).await,
        Tool::Logs(args) => logs::logs(args).await,
        Tool::Pause(args) => lifecycle::pause(args).await,
        Tool::Resume(args) => lifecycle::resume(args).await,
        Tool::Rm(args) => lifecycle::remove(args).await,
        Tool::Fork(args) => lifecycle::fork(args).await,
        Tool::Rollback(args) => lifecycle::rollback(args).await,
        Tool::Snapshot(args) => snapshots::snapshots(args).await,
        Tool::Ports(args) => ports::ports(args).await,
        Tool::Teams(args) => people::teams(args).await,
        Tool::Users(args) => people::users(args).await,
    }
}
