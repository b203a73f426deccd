//! Processes of the user's: one `exec` is one process with everything it starts, in a control group of its own.
//!
//! ```text
//! Order ──▶ check ──▶ Launch ──▶ start() ──▶ run::drive() ──▶ Event…, Event::Exited
//! ```

pub mod environment;
pub mod groups;
pub mod output;
pub mod path;
pub mod run;
pub mod start;

use crate::{cgroup::Cgroup, user};
use groups::Groups;
use start::{Launch, StartError};
use std::{collections::HashMap, fs, io, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, mpsc};

/// Processes that run at the same time; each holds some file descriptors and at most its stream's buffers.
const RUNNING_MAX: usize = 256;
/// Events between a process and its stream's reader; a slow reader blocks the pipes, never memory.
const EVENTS_MAX: usize = 64;

/// What to run and within which limits.
#[derive(Debug)]
pub struct Order {
    /// Program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables over the capsule's own.
    pub env: HashMap<String, String>,
    /// Working directory; empty, `~…` or relative begins at the user's home.
    pub cwd: String,
    /// Login name.
    pub user: String,
    /// Standard input; `None` is /dev/null.
    pub stdin: Option<Vec<u8>>,
    /// The whole tree is killed when it is over.
    pub timeout: Duration,
    /// Limit per output stream.
    pub output_bytes_max: usize,
}

/// What a process does, in order. `Exited` is last and comes exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// It wrote to standard output.
    Stdout(Vec<u8>),
    /// It wrote to standard error.
    Stderr(Vec<u8>),
    /// It ended, or could not be started.
    Exited(Exit),
}

/// How a process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// Exit status; 128 + n for signal n, 127 not found, 126 not executable.
    pub code: i32,
    /// The signal that ended it, 0 for none.
    pub signal: i32,
    /// Whether the time limit ended it.
    pub timed_out: bool,
    /// Whether it was killed for want of memory.
    pub oom: bool,
    /// Whether output is missing.
    pub stdout_truncated: bool,
    /// Whether output is missing.
    pub stderr_truncated: bool,
    /// Why it was not started; empty when it was.
    pub error: String,
}

/// Why an order was refused.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// A field cannot be used; the message begins with its name.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A variable cannot be used.
    #[error(transparent)]
    Variable(#[from] environment::BadVariable),
    /// The user is not known.
    #[error(transparent)]
    User(#[from] user::UserError),
    /// Too many processes run already.
    #[error("{RUNNING_MAX} processes run already")]
    TooMany,
    /// The process could not be made.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Its control group could not be made.
    #[error("no control group can be made")]
    Group(#[source] io::Error),
}

/// Starts processes and keeps count of them.
#[derive(Debug, Clone)]
pub struct Processes {
    groups: Arc<Groups>,
    running: Arc<Semaphore>,
}

impl Processes {
    /// Processes in groups below `parent`.
    pub fn new(parent: Cgroup) -> io::Result<Self> {
        Ok(Self { groups: Arc::new(Groups::new(parent)?), running: Arc::new(Semaphore::new(RUNNING_MAX)) })
    }

    /// Starts a process with the capsule's environment `env`. Dropping the receiver kills its whole tree.
    pub fn exec(
        &self,
        order: Order,
        env: &HashMap<String, String>,
    ) -> Result<mpsc::Receiver<Event>, OrderError> {
        let slot = Arc::clone(&self.running).try_acquire_owned().map_err(|_| OrderError::TooMany)?;
        let stdin = order.stdin;
        let limits = run::Limits { timeout: order.timeout, output_bytes_max: order.output_bytes_max };
        let user = user::look_up(&order.user)?;
        let cwd = path::resolve(&order.cwd, &user.home);
        check_text("cmd", &order.program)?;
        for arg in &order.args {
            check_no_nul("args", arg)?;
        }
        check_folder(&cwd)?;
        let env = environment::build(&user, env, order.env)?;
        let group = self.groups.make().map_err(OrderError::Group)?;
        let launch = Launch {
            program: order.program,
            args: order.args,
            env,
            cwd,
            user,
            cgroup: group.procs().map_err(OrderError::Group)?,
            stdin: stdin.is_some(),
        };
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        match start::start(launch) {
            Ok(running) => {
                let run = run::Run::new(running, group, stdin.unwrap_or_default(), limits, events);
                tokio::spawn(async move {
                    run.drive().await;
                    drop(slot);
                });
            }
            Err(error) => {
                let exit = not_started(error)?;
                // The channel is new and empty, so there is room.
                let _ = events.try_send(Event::Exited(exit));
            }
        }
        Ok(receiver)
    }
}

/// What a shell would say of a program that is missing or not one; other failures are the caller's to hear.
fn not_started(error: StartError) -> Result<Exit, StartError> {
    let code = match &error {
        StartError::NotFound { .. } => 127,
        StartError::NotExecutable { .. } => 126,
        StartError::Cwd(_) | StartError::Setup { .. } | StartError::Spawn(_) => return Err(error),
    };
    Ok(Exit { code, error: error.to_string(), ..Exit::default() })
}

fn check_text(field: &'static str, text: &str) -> Result<(), OrderError> {
    if text.is_empty() {
        return Err(OrderError::Invalid { field, problem: "is empty".to_owned() });
    }
    check_no_nul(field, text)
}

fn check_no_nul(field: &'static str, text: &str) -> Result<(), OrderError> {
    if text.contains('\0') {
        return Err(OrderError::Invalid { field, problem: "has a NUL byte".to_owned() });
    }
    Ok(())
}

fn check_folder(path: &str) -> Result<(), OrderError> {
    check_no_nul("cwd", path)?;
    let problem = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => "is not a directory".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(OrderError::Invalid { field: "cwd", problem: format!("{path}: {problem}") })
}
