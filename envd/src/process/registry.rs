//! All processes that envd started: those that run, by pid and tag, and the background ones that ended last.

use super::{
    Exit,
    groups::Group,
    input::Input,
    log::{Budget, Log},
    terminal::Terminal,
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Ended processes that are remembered.
const ENDED_MAX: usize = 256;
/// Memory of all logs together; those of ended processes may take half of it, so that the oldest are forgotten earlier.
const LOG_BYTES_MAX: usize = 32 << 20;
const ENDED_SHARE: usize = 2;

/// What does not change about a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its process id in the guest.
    pub pid: u32,
    /// Its name; empty when its output has one reader only.
    pub tag: String,
    /// Program.
    pub program: String,
    /// Arguments, cut where they are very long.
    pub args: Vec<String>,
    /// Whom it runs as.
    pub user: String,
    /// Where it was started.
    pub cwd: String,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// The guest's clock at its start, milliseconds since the epoch.
    pub started_at_ms: i64,
}

/// A process that runs, or did.
#[derive(Debug)]
pub struct Process {
    /// What does not change.
    pub facts: Facts,
    /// What it writes; none when that has one reader only.
    pub log: Option<Arc<Log>>,
    live: Mutex<Option<Live>>,
}

/// What only a running process has.
#[derive(Debug, Clone)]
pub struct Live {
    /// Its tree.
    pub group: Arc<Group>,
    /// Where its input goes.
    pub input: Option<Input>,
    /// Its terminal.
    pub terminal: Option<Arc<Terminal>>,
}

/// Which process is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// By its process id.
    Pid(u32),
    /// By its tag.
    Tag(String),
}

/// The table.
#[derive(Debug)]
pub struct Registry {
    table: Mutex<Table>,
    /// The memory of all logs.
    pub budget: Budget,
}

#[derive(Debug, Default)]
struct Table {
    running: HashMap<u32, Arc<Process>>,
    tags: HashSet<String>,
    ended: VecDeque<Arc<Process>>,
}

/// A tag that nobody else has as long as this lives.
#[derive(Debug)]
pub struct Tag {
    registry: Arc<Registry>,
    /// The tag.
    pub name: String,
}

/// A running process in the table. Dropped, it has ended: one with a log is remembered.
#[derive(Debug)]
pub struct Registered {
    registry: Arc<Registry>,
    /// The process.
    pub process: Arc<Process>,
    _tag: Option<Tag>,
}

impl Process {
    /// What it has while it runs; none after its end.
    pub fn live(&self) -> Option<Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it ended; none while it runs.
    pub fn exit(&self) -> Option<Exit> {
        self.log.as_ref().and_then(|log| log.exit())
    }
}

impl Registry {
    /// An empty table.
    pub fn new() -> Self {
        Self { table: Mutex::default(), budget: Budget::new(LOG_BYTES_MAX) }
    }

    /// Takes a tag; none when it is taken.
    pub fn tag(self: &Arc<Self>, name: &str) -> Option<Tag> {
        let free = self.lock().tags.insert(name.to_owned());
        free.then(|| Tag { registry: Arc::clone(self), name: name.to_owned() })
    }

    /// Enters a process that was just started.
    pub fn enter(
        self: &Arc<Self>,
        facts: Facts,
        live: Live,
        log: Option<Arc<Log>>,
        tag: Option<Tag>,
    ) -> Registered {
        let process = Arc::new(Process { facts, log, live: Mutex::new(Some(live)) });
        let mut table = self.lock();
        table.running.insert(process.facts.pid, Arc::clone(&process));
        drop(table);
        Registered { registry: Arc::clone(self), process, _tag: tag }
    }

    /// The process that is meant: a running one before one that ended, and of those the last.
    pub fn find(&self, selector: &Selector) -> Option<Arc<Process>> {
        let table = self.lock();
        let is_meant = |process: &&Arc<Process>| match selector {
            Selector::Pid(pid) => process.facts.pid == *pid,
            Selector::Tag(tag) => !tag.is_empty() && process.facts.tag == *tag,
        };
        let running = match selector {
            Selector::Pid(pid) => table.running.get(pid),
            Selector::Tag(_) => table.running.values().find(is_meant),
        };
        running.or_else(|| table.ended.iter().rev().find(is_meant)).cloned()
    }

    /// Those that run, and with `ended` those that are remembered, by the time of their start.
    pub fn list(&self, ended: bool) -> Vec<Arc<Process>> {
        let table = self.lock();
        let remembered = table.ended.iter().filter(|_| ended);
        let mut all: Vec<_> = table.running.values().chain(remembered).cloned().collect();
        drop(table);
        all.sort_by_key(|process| (process.facts.started_at_ms, process.facts.pid));
        all
    }

    fn end(&self, process: &Arc<Process>) {
        let mut table = self.lock();
        // A new process may have the number already.
        if table.running.get(&process.facts.pid).is_some_and(|found| Arc::ptr_eq(found, process)) {
            table.running.remove(&process.facts.pid);
        }
        if process.log.is_some() {
            table.ended.push_back(Arc::clone(process));
        }
        let mut forgotten = Vec::new();
        while ENDED_MAX < table.ended.len() {
            forgotten.extend(table.ended.pop_front());
        }
        drop(table);
        drop(forgotten);
        self.forget_for_memory();
    }

    /// Forgets the oldest while logs take too much. Logs are counted until their last reader has gone.
    fn forget_for_memory(&self) {
        while self.budget.is_over(ENDED_SHARE) {
            let oldest = self.lock().ended.pop_front();
            if oldest.is_none() {
                return;
            }
        }
    }

    // The table is valid after every statement, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Tag {
    fn drop(&mut self) {
        self.registry.lock().tags.remove(&self.name);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.process.live.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.registry.end(&self.process);
    }
}
