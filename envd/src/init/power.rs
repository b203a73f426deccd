//! The end of a capsule.

use super::console;
use nix::sys::reboot::{RebootMode, reboot};
use std::{error::Error, fmt::Write as _};

/// Writes the disk and powers off.
pub fn off() -> ! {
    nix::unistd::sync();
    // Without a power switch the kernel halts; a restart ends a machine that was told not to reboot.
    for mode in [RebootMode::RB_POWER_OFF, RebootMode::RB_AUTOBOOT] {
        let Err(error) = reboot(mode);
        console::say(&format!("{mode:?} failed: {error}"));
    }
    // PID 1 cannot go on; its end is a kernel panic, which ends the machine too.
    std::process::exit(1)
}

/// Says on the console why the capsule cannot live, and powers off.
pub fn fail(error: &dyn Error) -> ! {
    console::say(&line(error));
    off()
}

/// (pure) An error with its causes, as the console shows it.
pub fn line(error: &dyn Error) -> String {
    let mut line = format!("FATAL: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line
}
