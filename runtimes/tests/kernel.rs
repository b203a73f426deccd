//! Runs on real kernels. Needs a Python with IPython: `HEARTH_TEST_PYTHON`, or `python3`.
//!
//! `HEARTH_TEST_SKIP=python` skips these tests where there is none.

#[path = "kernel/accounts.rs"]
mod accounts;
#[path = "kernel/basics.rs"]
mod basics;
#[path = "kernel/ends.rs"]
mod ends;
#[path = "kernel/groups.rs"]
mod groups;
#[path = "kernel/hostile.rs"]
mod hostile;
#[path = "kernel/settings.rs"]
mod settings;
#[path = "kernel/support.rs"]
mod support;
#[path = "kernel/traces.rs"]
mod traces;
