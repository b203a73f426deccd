//! Which engine and accelerator this host uses, and why.

pub mod kvm;
pub mod tsc;

use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

/// How guest instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// In hardware.
    Kvm,
    /// In software, by QEMU's translator. For development and trusted code.
    Tcg,
}

impl Accelerator {
    /// Its name on QEMU's command line and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum EngineChoice {
    /// QEMU, with KVM where the timed probe says that it is real.
    #[default]
    Auto,
    /// QEMU with KVM, whatever the probe says.
    QemuKvm,
    /// QEMU without KVM.
    QemuTcg,
}

/// The engine of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// QEMU's program.
    pub program: PathBuf,
    /// Its version, e.g. `7.2.22 (Debian 1:7.2+dfsg-7)`.
    pub version: String,
    /// How it executes.
    pub accelerator: Accelerator,
    /// Why.
    pub reason: String,
    /// Rate of the host's time stamp counter.
    pub tsc_khz: u64,
}

/// The line that every start-up without hardware virtualization prints.
pub const TCG_WARNING: &str = "software emulation (TCG): for development and trusted code only; QEMU does not call it a \
                               security boundary";

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// QEMU is not there, or does not start.
    #[error(
        "{program} cannot be run ({source}); install it: apt-get install --no-install-recommends qemu-system-x86"
    )]
    Program {
        /// What was tried.
        program: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Its version is not readable.
    #[error("`{0} --version` does not say a version")]
    Version(PathBuf),
}

impl Engine {
    /// Finds QEMU and decides on the accelerator. `prober` is our own program, which has the `kvm-probe` command.
    /// Blocks for up to some seconds.
    pub fn choose(program: &Path, choice: EngineChoice, prober: &Path) -> Result<Self, EngineError> {
        let output = Command::new(program)
            .arg("--version")
            .output()
            .map_err(|source| EngineError::Program { program: program.to_owned(), source })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text
            .lines()
            .next()
            .and_then(|line| line.split("version ").nth(1))
            .ok_or_else(|| EngineError::Version(program.to_owned()))?
            .trim()
            .to_owned();
        let (accelerator, reason) = match choice {
            EngineChoice::QemuKvm => (Accelerator::Kvm, "chosen by configuration".to_owned()),
            EngineChoice::QemuTcg => (Accelerator::Tcg, "chosen by configuration".to_owned()),
            EngineChoice::Auto => match kvm::probe(prober) {
                Ok(verdict) => {
                    (if verdict.real { Accelerator::Kvm } else { Accelerator::Tcg }, verdict.reason)
                }
                Err(error) => (Accelerator::Tcg, format!("the KVM probe could not run: {error}")),
            },
        };
        Ok(Self { program: program.to_owned(), version, accelerator, reason, tsc_khz: tsc::measure_khz() })
    }
}
