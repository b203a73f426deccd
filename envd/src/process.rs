//! Processes of the user's: each with everything it starts, in a control group of its own.
//!
//! ```text
//! Order ──▶ check ──▶ Launch ──▶ start() ──▶ run::drive() ──▶ Event…, Event::Exited      one reader, whose end is its end
//!                        └─────▶ start() ──▶ background::drive() ──▶ Log ──▶ Reader…     goes on by itself
//! ```

pub mod background;
pub mod environment;
pub mod groups;
pub mod input;
pub mod log;
pub mod output;
pub mod path;
pub mod pipes;
pub mod registry;
pub mod run;
pub mod signal;
pub mod start;
pub mod terminal;

use crate::{
    cgroup::Cgroup,
    user::{self, User},
};
use background::{Background, Stream};
use groups::{Group, Groups};
use input::{Input, Sink};
use log::{Log, Patience, Source};
use registry::{Facts, Live, Process, Registry, Selector, Tag};
use start::{Launch, StartError};
use std::{
    collections::HashMap,
    fs, io,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use terminal::{Size, Terminal};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};

/// Processes that run at the same time; each holds some file descriptors and at most its stream's buffers.
const RUNNING_MAX: usize = 256;
/// Events between a process and its stream's reader; a slow reader blocks the pipes, never memory.
const EVENTS_MAX: usize = 64;
/// 128 + SIGKILL: how a shell reports a killed child.
const KILLED: i32 = 137;
/// What of a process's arguments is shown later, in bytes.
const SHOWN_BYTES_MAX: usize = 4096;
/// Longest tag.
const TAG_BYTES_MAX: usize = 64;
/// Tries to find a tag that is free; one is enough unless randomness fails.
const TAG_TRIES: usize = 8;

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
    /// Limit per output stream; a background process has none.
    pub output_bytes_max: usize,
}

/// How a process runs in the background.
#[derive(Debug)]
pub struct Plan {
    /// Its name; empty: a new one.
    pub tag: String,
    /// The size of its terminal, if it is to have one.
    pub terminal: Option<Size>,
    /// Whether its standard input stays open for what is written later.
    pub keep_stdin: bool,
    /// Bytes of its output that are kept.
    pub keep_bytes: usize,
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
    /// A running process has the tag.
    #[error("tag: a process with the tag {0:?} runs")]
    Taken(String),
    /// No terminal or no tag could be made.
    #[error("{0} cannot be made")]
    Make(&'static str, #[source] io::Error),
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

impl Exit {
    /// What a process's end means, for a process in `group`.
    pub fn of(status: ExitStatus, timed_out: bool, group: &Group) -> Self {
        let signal = status.signal().unwrap_or(0);
        let code = status.code().unwrap_or(128 + signal);
        let oom = code == KILLED && !timed_out && 0 < group.oom_kills();
        Self { code, signal, timed_out, oom, ..Self::default() }
    }
}

/// Starts processes and keeps count of them.
#[derive(Debug, Clone)]
pub struct Processes {
    groups: Arc<Groups>,
    running: Arc<Semaphore>,
    registry: Arc<Registry>,
}

/// An order that can be started: what is fixed, and its place.
struct Ready {
    launch: Launch,
    group: Arc<Group>,
    slot: OwnedSemaphorePermit,
    facts: Facts,
}

impl Processes {
    /// Processes in groups below `parent`.
    pub fn new(parent: Cgroup) -> io::Result<Self> {
        Ok(Self {
            groups: Arc::new(Groups::new(parent)?),
            running: Arc::new(Semaphore::new(RUNNING_MAX)),
            registry: Arc::new(Registry::new()),
        })
    }

    /// The process that is meant; of those that ended, one in the background that is remembered.
    pub fn find(&self, selector: &Selector) -> Option<Arc<Process>> {
        self.registry.find(selector)
    }

    /// Processes that run, and with `ended` also those that are remembered, in the order of their start.
    pub fn list(&self, ended: bool) -> Vec<Arc<Process>> {
        self.registry.list(ended)
    }

    /// Starts a process with the capsule's environment `env`. Dropping the receiver kills its whole tree.
    pub fn exec(
        &self,
        mut order: Order,
        env: &HashMap<String, String>,
    ) -> Result<mpsc::Receiver<Event>, OrderError> {
        let stdin = order.stdin.take();
        let limits = run::Limits { timeout: order.timeout, output_bytes_max: order.output_bytes_max };
        let (Ready { launch, group, slot, mut facts }, _) = self.ready(order, env)?;
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        match start::start(launch, stdin.is_some()) {
            Ok(running) => {
                facts.pid = running.child.id().unwrap_or_default();
                let live = Live { group: Arc::clone(&group), input: None, terminal: None };
                let registered = self.registry.enter(facts, live, None, None);
                let run = run::Run::new(running, group, stdin.unwrap_or_default(), limits, events);
                tokio::spawn(async move {
                    run.drive().await;
                    drop((registered, slot));
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

    /// Starts a process that goes on by itself, with the capsule's environment `env`.
    pub fn start(
        &self,
        mut order: Order,
        plan: Plan,
        env: &HashMap<String, String>,
    ) -> Result<Arc<Process>, OrderError> {
        let first = order.stdin.take();
        let deadline = Instant::now().checked_add(order.timeout);
        let (Ready { mut launch, group, slot, mut facts }, user) = self.ready(order, env)?;
        let tag = self.tag(&plan)?;
        facts.tag.clone_from(&tag.name);
        facts.terminal = plan.terminal.is_some();
        let has_input = plan.keep_stdin || first.is_some() || facts.terminal;
        let (child, streams, sink, terminal) = match plan.terminal {
            Some(size) => {
                let terminal_type = || "xterm-256color".to_owned();
                launch.env.entry("TERM".to_owned()).or_insert_with(terminal_type);
                let (terminal, peer) =
                    Terminal::open(size, &user).map_err(|error| OrderError::Make("a terminal", error))?;
                let terminal = Arc::new(terminal);
                let child = start::start_on(peer, launch)?;
                let streams = [Stream::terminal(Arc::clone(&terminal)), Stream::none()];
                (child, streams, Some(Sink::Terminal(Arc::clone(&terminal))), Some(terminal))
            }
            None => {
                let running = start::start(launch, has_input)?;
                let stdout = Stream::pipe(Source::Stdout, running.stdout);
                let streams = [stdout, Stream::pipe(Source::Stderr, running.stderr)];
                (running.child, streams, running.stdin.map(Sink::Pipe), None)
            }
        };
        facts.pid = child.id().unwrap_or_default();
        let keep = plan.keep_stdin || facts.terminal;
        let input = sink.map(|sink| Input::start(sink, first.unwrap_or_default(), keep));
        let (input, feeding) = input.unzip();
        let live = Live { group: Arc::clone(&group), input: input.filter(|_| keep), terminal };
        let log = Arc::new(Log::new(plan.keep_bytes, self.registry.budget.clone(), Patience::default()));
        let registered = self.registry.enter(facts, live, Some(Arc::clone(&log)), Some(tag));
        let process = Arc::clone(&registered.process);
        let background = Background { child, streams, group, log, deadline, input: feeding, registered };
        tokio::spawn(async move {
            background.drive().await;
            drop(slot);
        });
        Ok(process)
    }

    /// Checks an order and makes what it needs.
    fn ready(&self, order: Order, env: &HashMap<String, String>) -> Result<(Ready, User), OrderError> {
        let slot = Arc::clone(&self.running).try_acquire_owned().map_err(|_| OrderError::TooMany)?;
        let user = user::look_up(&order.user)?;
        let cwd = path::resolve(&order.cwd, &user.home);
        check_text("cmd", &order.program)?;
        for arg in &order.args {
            check_no_nul("args", arg)?;
        }
        check_folder(&cwd)?;
        let env = environment::build(&user, env, order.env)?;
        let group = Arc::new(self.groups.make().map_err(OrderError::Group)?);
        let facts = Facts {
            pid: 0,
            tag: String::new(),
            program: shown(&order.program, SHOWN_BYTES_MAX).to_owned(),
            args: shown_all(&order.args),
            user: user.name.clone(),
            cwd: cwd.clone(),
            terminal: false,
            started_at_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
        };
        let cgroup = group.procs().map_err(OrderError::Group)?;
        let launch =
            Launch { program: order.program, args: order.args, env, cwd, user: user.clone(), cgroup };
        Ok((Ready { launch, group, slot, facts }, user))
    }

    /// The tag that is asked for, or a new one.
    fn tag(&self, plan: &Plan) -> Result<Tag, OrderError> {
        if !plan.tag.is_empty() {
            check_tag(&plan.tag)?;
            return self.registry.tag(&plan.tag).ok_or_else(|| OrderError::Taken(plan.tag.clone()));
        }
        let prefix = if plan.terminal.is_some() { "pty" } else { "proc" };
        for _ in 0..TAG_TRIES {
            let mut random = [0; 4];
            getrandom::fill(&mut random).map_err(|error| OrderError::Make("a tag", error.into()))?;
            if let Some(tag) = self.registry.tag(&format!("{prefix}-{}", hex::encode(random))) {
                return Ok(tag);
            }
        }
        Err(OrderError::Make("a tag", io::ErrorKind::AlreadyExists.into()))
    }
}

/// (pure) The first `max` bytes of a text, or a little less.
fn shown(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// (pure) Arguments as they are shown: those that fit.
fn shown_all(args: &[String]) -> Vec<String> {
    let mut left = SHOWN_BYTES_MAX;
    let mut all = Vec::new();
    for arg in args {
        let part = shown(arg, left);
        all.push(part.to_owned());
        // Empty ones count too.
        left = left.saturating_sub(part.len() + 1);
        if left == 0 || part.len() < arg.len() {
            break;
        }
    }
    all
}

/// (pure) Whether a tag can be one: never to be taken for a pid.
fn check_tag(tag: &str) -> Result<(), OrderError> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let problem = if TAG_BYTES_MAX < tag.len() {
        format!("has more than {TAG_BYTES_MAX} characters")
    } else if !tag.bytes().all(is_allowed) {
        "has other characters than A-Z, a-z, 0-9, `.`, `_` and `-`".to_owned()
    } else if tag.bytes().all(|byte| byte.is_ascii_digit()) {
        "is a number".to_owned()
    } else {
        return Ok(());
    };
    Err(OrderError::Invalid { field: "tag", problem })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_no_pids_and_short() {
        for tag in ["a", "build-1", "1.2", "_", &"x".repeat(64)] {
            assert!(check_tag(tag).is_ok(), "{tag}");
        }
        for tag in ["1", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(check_tag(tag).is_err(), "{tag}");
        }
    }

    #[test]
    fn what_is_shown_of_arguments_is_bounded() {
        let few = vec!["a".to_owned(), String::new(), "ü".to_owned()];
        assert_eq!(shown_all(&few), few);
        let long = vec!["ü".repeat(5000), "b".to_owned()];
        assert_eq!(shown_all(&long), ["ü".repeat(2048)]);
        assert!(shown_all(&vec![String::new(); 100_000]).len() <= 4096);
    }
}
