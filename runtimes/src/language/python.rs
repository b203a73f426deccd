//! Python: our lean kernel around IPython's shell (`languages/python/`).
//!
//! Chosen by measurement (`measure/kernel_transport.py`, 2026-11, native, p50 of `print(1+1)`): this kernel
//! 0.15 ms, IPython's own `run_cell` without any transport 0.19 ms, ipykernel in-process 4.9 ms, ipykernel
//! over ZeroMQ IPC 5.8 ms, xeus-python over ZeroMQ IPC 6 to 15 ms (under load). `measure/differential.py` holds it to stock ipykernel's behaviour.

use super::Command;
use crate::config::Config;
use std::path::Path;

pub(super) const FILES: &[(&str, &str)] = &[
    ("kernel.py", include_str!("../../languages/python/kernel.py")),
    ("hearth_channel.py", include_str!("../../languages/python/hearth_channel.py")),
    ("hearth_shell.py", include_str!("../../languages/python/hearth_shell.py")),
];

pub(super) const REHEARSAL: &[&str] = &["print(1+1)", "1+1", "print(1+1)"];

pub(super) fn command(config: &Config, folder: &Path) -> Command {
    Command {
        program: config.python.clone(),
        arguments: vec![folder.join("kernel.py")],
        env: vec![
            ("MPLBACKEND", "module://matplotlib_inline.backend_inline"),
            // One thread: a guest has one or two processors, and idle threads cost memory in each clone.
            ("OPENBLAS_NUM_THREADS", "1"),
            ("PYTHONUNBUFFERED", "1"),
            ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ],
    }
}
