//! Runs code inside the guest: languages, kernels, contexts and runs.
//!
//! A *kernel* is a process that executes cells of one language; a *context* is a stateful session and owns
//! at most one kernel; a *run* is one cell executed in a context. One task owns each context, so runs of a
//! context queue up and contexts do not know of each other.
//!
//! ```text
//!   Runtimes ── runs, control ──▶ context task ── Kernel ══ frames, window, pipes ══ process
//!      ▲                               │
//!      └────────── RunStream ◀── events (bounded by the output limits)
//! ```
//!
//! The kernels speak the Jupyter messaging protocol over one socket pair each; `kernel` describes the
//! transport. What a kernel process says is not trusted: user code lives in the same process.

mod config;
mod context;
mod error;
mod files;
mod kernel;
mod language;
mod output;
mod run;
mod runtimes;

pub use config::{Config, Limits, User};
pub use error::RuntimeError;
pub use run::RunStream;
pub use runtimes::Runtimes;
