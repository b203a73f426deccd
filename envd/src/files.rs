//! Files of the capsule, each call with the rights of its user and on a thread of its own.
//!
//! ```text
//! call ──▶ place ──▶ thread: user ──▶ rights ──▶ path ──▶ read | write | list | … ──▶ answer, or parts through a queue
//! ```

pub mod change;
pub mod entry;
pub mod list;
pub mod path;
pub mod read;
pub mod relocate;
pub mod tree;
pub mod watch;
pub mod worker;
pub mod write;

use crate::user::UserError;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Semaphore;

/// Calls at the same time, each a thread and some buffers.
const CALLS_MAX: usize = 64;
/// The same for watches, which last.
const WATCHES_MAX: usize = 64;
/// What a message shows of a path.
const SHOWN_CHARS_MAX: usize = 300;

/// Why a call on files failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A field cannot be used; the message begins with its name.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The user is not known.
    #[error(transparent)]
    User(#[from] UserError),
    /// The kernel refused something about a path.
    #[error("{}: {source}", shown(.path))]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is there is not what is needed.
    #[error("{}: {problem}", shown(.path))]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it is.
        problem: &'static str,
    },
    /// A path is missing something that is no file.
    #[error("{}: {problem}", shown(.path))]
    Missing {
        /// The path.
        path: PathBuf,
        /// What.
        problem: String,
    },
    /// Something is there already.
    #[error("{}: exists already", shown(.0))]
    Exists(PathBuf),
    /// The file became shorter while it was read.
    #[error("{}: became shorter while it was read", shown(.0))]
    Shrank(PathBuf),
    /// A pipe or device does not take what is written to it.
    #[error("{}: did not take what was written in time", shown(.0))]
    Slow(PathBuf),
    /// A bound is reached.
    #[error("{0}")]
    TooMany(&'static str),
    /// The caller went away, or its stream broke.
    #[error("the call was broken off")]
    BrokenOff,
    /// The thread did not start, did not get its rights, or died.
    #[error("no thread for the call")]
    Thread(#[source] io::Error),
}

impl FileError {
    /// A refusal of the kernel's.
    pub fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }

    /// The same for an error number.
    pub fn errno(path: &Path) -> impl Fn(nix::Error) -> Self + '_ {
        |errno| Self::io(path)(errno.into())
    }
}

/// (pure) A path in a message: text, and not endless.
fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}

/// Counts the calls. Clones count together.
#[derive(Debug, Clone)]
pub struct Files {
    calls: Arc<Semaphore>,
    watches: Arc<Semaphore>,
}

impl Default for Files {
    fn default() -> Self {
        Self { calls: Arc::new(Semaphore::new(CALLS_MAX)), watches: Arc::new(Semaphore::new(WATCHES_MAX)) }
    }
}
