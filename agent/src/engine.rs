//! Which engine and accelerator this host uses, and why.

pub mod firecracker;
pub mod kvm;
pub mod tsc;

use firecracker::Version;
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
    /// Firecracker where the timed probe says that KVM is real and Firecracker is installed, else QEMU.
    #[default]
    Auto,
    /// Firecracker, whatever the probe says.
    Firecracker,
    /// QEMU, with KVM where the timed probe says that it is real.
    Qemu,
    /// QEMU with KVM, whatever the probe says.
    QemuKvm,
    /// QEMU without KVM.
    QemuTcg,
}

/// Where the engines' programs are.
#[derive(Debug, Clone, clap::Args)]
pub struct Programs {
    /// QEMU's program.
    #[arg(long, env = "HEARTH_QEMU_BIN", default_value = "/usr/bin/qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// Firecracker's program.
    #[arg(long, env = "HEARTH_FIRECRACKER_BIN", default_value = "/usr/local/bin/firecracker")]
    pub firecracker: PathBuf,
    /// The jailer that belongs to it.
    #[arg(long, env = "HEARTH_JAILER_BIN", default_value = "/usr/local/bin/jailer")]
    pub jailer: PathBuf,
}

/// Which VMM runs capsules, and what only that one has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// QEMU's microvm.
    Qemu,
    /// Firecracker.
    Firecracker {
        /// Its jailer.
        jailer: PathBuf,
        /// Its version, by which features are chosen.
        version: Version,
    },
}

/// The engine of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Which VMM.
    pub kind: Kind,
    /// Its program.
    pub program: PathBuf,
    /// Its version, e.g. `7.2.22 (Debian 1:7.2+dfsg-7)` or `1.16.1`.
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
        "{program} cannot be run ({source}); install it: apt-get install --no-install-recommends qemu-system-x86 \
         (it is used because: {because})"
    )]
    Program {
        /// What was tried.
        program: PathBuf,
        /// Why it failed.
        source: io::Error,
        /// Why it is to be used.
        because: String,
    },
    /// Its version is not readable.
    #[error("`{0} --version` does not say a version")]
    Version(PathBuf),
    /// Firecracker was asked for and cannot be used.
    #[error("Firecracker cannot be used: {0}; see docs/operations.md")]
    Firecracker(#[from] firecracker::Unusable),
}

impl Engine {
    /// Finds the programs and decides. `prober` is our own program, which has the `kvm-probe` command. Blocks for up to
    /// some seconds.
    pub fn choose(programs: &Programs, choice: EngineChoice, prober: &Path) -> Result<Self, EngineError> {
        match choice {
            EngineChoice::Firecracker => {
                let found = firecracker::find(programs)?;
                Ok(Self::firecracker(programs, found, "chosen by configuration".to_owned()))
            }
            EngineChoice::QemuKvm => {
                Self::qemu(&programs.qemu, Accelerator::Kvm, "chosen by configuration".to_owned())
            }
            EngineChoice::QemuTcg => {
                Self::qemu(&programs.qemu, Accelerator::Tcg, "chosen by configuration".to_owned())
            }
            EngineChoice::Qemu | EngineChoice::Auto => {
                let (real, reason) = match kvm::probe(prober) {
                    Ok(verdict) => (verdict.real, verdict.reason),
                    Err(error) => (false, format!("the KVM probe could not run: {error}")),
                };
                if !real {
                    return Self::qemu(&programs.qemu, Accelerator::Tcg, reason);
                }
                if choice == EngineChoice::Qemu {
                    return Self::qemu(&programs.qemu, Accelerator::Kvm, reason);
                }
                match firecracker::find(programs) {
                    Ok(found) => Ok(Self::firecracker(programs, found, reason)),
                    Err(unusable) => {
                        let reason = format!("{reason}; not Firecracker: {unusable}");
                        Self::qemu(&programs.qemu, Accelerator::Kvm, reason)
                    }
                }
            }
        }
    }

    fn firecracker(programs: &Programs, version: Version, reason: String) -> Self {
        Self {
            kind: Kind::Firecracker { jailer: programs.jailer.clone(), version },
            program: programs.firecracker.clone(),
            version: version.to_string(),
            accelerator: Accelerator::Kvm,
            reason,
            tsc_khz: tsc::measure_khz(),
        }
    }

    fn qemu(program: &Path, accelerator: Accelerator, reason: String) -> Result<Self, EngineError> {
        let output = Command::new(program).arg("--version").output().map_err(|source| {
            EngineError::Program { program: program.to_owned(), source, because: reason.clone() }
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text
            .lines()
            .next()
            .and_then(|line| line.split("version ").nth(1))
            .ok_or_else(|| EngineError::Version(program.to_owned()))?
            .trim()
            .to_owned();
        let tsc_khz = tsc::measure_khz();
        Ok(Self { kind: Kind::Qemu, program: program.to_owned(), version, accelerator, reason, tsc_khz })
    }

    /// Its name in manifests, metrics and on the wire.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Qemu => "qemu",
            Kind::Firecracker { .. } => "firecracker",
        }
    }
}
