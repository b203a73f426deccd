//! Chooses the role: the initramfs's `/init` by where it runs, the others by name.

use clap::Parser as _;
use hearth_envd::{
    boot,
    config::{Cli, Role},
    init, service,
};
use std::process::ExitCode;

fn main() -> ExitCode {
    // The kernel passes words of its command line that it does not know to /init as arguments.
    if boot::is_initramfs() {
        boot::run();
    }
    match Cli::parse().role {
        Role::Init => init::run(),
        Role::Service(config) => match service::run(config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "the service cannot go on");
                ExitCode::FAILURE
            }
        },
    }
}
