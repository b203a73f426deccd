//! What a pager did, in a small file that the pager maps and the agent reads: counters survive either of them, and
//! reading them costs the pager nothing.
//!
//! The file is 128 bytes: magic "HRTHSTA1", then [`COUNTERS`] native u64 counters.

#![expect(unsafe_code, reason = "a shared mapping of counters")]

use memmap2::MmapMut;
use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

const MAGIC: u64 = u64::from_ne_bytes(*b"HRTHSTA1");
const BYTES: usize = 128;
/// Number of counters in the file.
const COUNTERS: usize = 7;

/// A counter's place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Page-fault events served.
    Faults,
    /// Pages written into the image.
    FilledPages,
    /// Pages answered by mapping the zero page.
    ZeroPages,
    /// Pages answered by a private copy because the image had no room.
    CopiedPages,
    /// Sum of the time from reading an event to waking the guest, in microseconds.
    ServeMicros,
    /// The longest of these.
    ServeMicrosMax,
    /// 1 once the handshake was accepted.
    Serving,
}

/// The pager's side.
pub struct Writer {
    map: MmapMut,
}

impl Writer {
    /// Makes the file (replacing an old one) and maps it.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(BYTES as u64)?;
        // SAFETY: a file of ours that nobody truncates while we live: its folder belongs to root and is removed only
        // after this process has ended.
        let map = unsafe { MmapMut::map_mut(&file)? };
        let writer = Self { map };
        writer.cell(0).store(MAGIC, Ordering::Release);
        Ok(writer)
    }

    fn cell(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index <= COUNTERS);
        // SAFETY: the mapping is page aligned, lives as long as `self`, and `index` is at most COUNTERS, hence inside
        // BYTES; other processes touch it only through reads of the file.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().cast_mut().cast::<u64>().add(index)) }
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, by: u64) {
        self.cell(counter as usize + 1).fetch_add(by, Ordering::Relaxed);
    }

    /// Raises a counter to `value` when it is lower.
    pub fn raise(&self, counter: Counter, value: u64) {
        self.cell(counter as usize + 1).fetch_max(value, Ordering::Relaxed);
    }
}

/// A copy of the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats([u64; COUNTERS]);

impl Stats {
    /// Reads a pager's counters; all zero when the file is not there yet.
    pub fn read(path: &Path) -> io::Result<Self> {
        let bytes = match File::open(path) {
            Ok(_) => fs::read(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut cells = bytes.chunks_exact(8).map(|cell| {
            let mut number = [0; 8];
            number.copy_from_slice(cell);
            u64::from_ne_bytes(number)
        });
        if cells.next() != Some(MAGIC) {
            return Ok(Self::default());
        }
        let mut stats = Self::default();
        for (to, from) in stats.0.iter_mut().zip(cells) {
            *to = from;
        }
        Ok(stats)
    }

    /// One counter's value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats");
        assert_eq!(Stats::read(&path).unwrap(), Stats::default());
        let writer = Writer::create(&path).unwrap();
        writer.add(Counter::Faults, 2);
        writer.add(Counter::Faults, 3);
        writer.raise(Counter::ServeMicrosMax, 9);
        writer.raise(Counter::ServeMicrosMax, 4);
        writer.add(Counter::Serving, 1);
        let stats = Stats::read(&path).unwrap();
        assert_eq!(stats.get(Counter::Faults), 5);
        assert_eq!(stats.get(Counter::ServeMicrosMax), 9);
        assert_eq!(stats.get(Counter::Serving), 1);
        assert_eq!(stats.get(Counter::ZeroPages), 0);
    }
}
