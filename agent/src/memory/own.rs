//! A stopped capsule's own pages, however its engine tells them.

use super::{
    dumped::{Dump, Dumped, DumpedError},
    written::{Memory, WrittenError},
};
use std::{io, path::Path};

/// A capsule's own pages.
pub enum Own {
    /// In a private mapping of the image: found and read by /proc.
    Mapped(Memory),
    /// In a file that the VMM wrote.
    Dumped(Box<Dumped>),
}

/// Why they cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    /// The mapping.
    #[error(transparent)]
    Written(#[from] WrittenError),
    /// The file.
    #[error(transparent)]
    Dumped(#[from] DumpedError),
}

impl Own {
    /// Of the VMM `pid`, which left a dump, or maps `image`.
    pub fn open(dump: Option<Dump>, pid: i32, image: &Path, ram_bytes: u64) -> Result<Self, OwnError> {
        match dump {
            Some(dump) => Ok(Self::Dumped(Box::new(Dumped::open(dump, ram_bytes)?))),
            None => Ok(Self::Mapped(Memory::open(pid, image, ram_bytes)?)),
        }
    }

    /// Which pages they are, a bit each, a value per chunk. More than were written, never fewer.
    pub fn written(&self) -> io::Result<Vec<u16>> {
        match self {
            Self::Mapped(memory) => memory.written(),
            Self::Dumped(dumped) => Ok(dumped.written()),
        }
    }

    /// Reads memory at `offset`: only pages of one chunk that [`Own::written`] names.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Mapped(memory) => memory.read(offset, out),
            Self::Dumped(dumped) => dumped.read(offset, out),
        }
    }
}
