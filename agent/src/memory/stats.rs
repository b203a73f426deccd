//! What a pager did, in a small file that the pager maps and the agent reads: counters survive either of them, and
//! reading them costs the pager nothing.
//!
//! The file is 256 bytes: magic "HRTHSTA1", then [`COUNTERS`] native u64 counters, then one per bucket of the time that
//! faults took. Pagers of an older agent have shorter files: what is not there is zero.

#![expect(unsafe_code, reason = "a shared mapping of counters")]

use hearth_service::metrics::FAULT_MICROS;
use memmap2::MmapMut;
use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

const MAGIC: u64 = u64::from_ne_bytes(*b"HRTHSTA1");
const BYTES: usize = 256;
/// Number of counters in the file.
const COUNTERS: usize = 7;
/// Number of buckets behind them: one for each bound, and one for what is longer.
const BUCKETS: usize = FAULT_MICROS.len() + 1;
const CELLS: usize = COUNTERS + BUCKETS;

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
        debug_assert!(index <= CELLS);
        // SAFETY: the mapping is page aligned, lives as long as `self`, and `index` is at most CELLS, hence inside
        // BYTES; other processes touch it only through reads of the file.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().cast_mut().cast::<u64>().add(index)) }
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, by: u64) {
        self.cell(counter as usize + 1).fetch_add(by, Ordering::Relaxed);
    }

    /// Counts a fault that was served, and how long that took.
    pub fn served(&self, micros: u64) {
        self.add(Counter::Faults, 1);
        self.add(Counter::ServeMicros, micros);
        self.raise(Counter::ServeMicrosMax, micros);
        self.cell(1 + COUNTERS + bucket(micros)).fetch_add(1, Ordering::Relaxed);
    }

    /// Raises a counter to `value` when it is lower.
    pub fn raise(&self, counter: Counter, value: u64) {
        self.cell(counter as usize + 1).fetch_max(value, Ordering::Relaxed);
    }
}

/// (pure) The bucket of a time: the first whose bound is not below it.
fn bucket(micros: u64) -> usize {
    FAULT_MICROS.iter().position(|bound| micros <= *bound).unwrap_or(FAULT_MICROS.len())
}

/// A copy of the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats([u64; CELLS]);

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

    /// Faults that were served since `before`, by the time in microseconds that stands for their bucket: its bound, and for
    /// what is longer than all bounds twice the last.
    pub fn served_since(&self, before: &Self) -> impl Iterator<Item = (u64, u64)> {
        let last = FAULT_MICROS[FAULT_MICROS.len() - 1];
        let times = FAULT_MICROS.into_iter().chain([2 * last]);
        let counts = self.0[COUNTERS..].iter().zip(&before.0[COUNTERS..]);
        times.zip(counts.map(|(now, before)| now.saturating_sub(*before)).collect::<Vec<_>>())
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
        writer.served(5);
        writer.served(6);
        writer.served(100_001);
        let first = Stats::read(&path).unwrap();
        writer.served(7);
        let again = Stats::read(&path).unwrap();
        let since: Vec<_> = again.served_since(&first).filter(|(_, count)| *count != 0).collect();
        assert_eq!(since, [(10, 1)]);
        let all: Vec<_> = again.served_since(&Stats::default()).filter(|(_, count)| *count != 0).collect();
        assert_eq!(all, [(5, 1), (10, 2), (200_000, 1)]);
        assert_eq!((again.get(Counter::ServeMicros), again.get(Counter::ServeMicrosMax)), (100_019, 100_001));
        writer.add(Counter::Faults, 1);
        writer.add(Counter::Serving, 1);
        let stats = Stats::read(&path).unwrap();
        assert_eq!(stats.get(Counter::Faults), 5);
        assert_eq!(stats.get(Counter::Serving), 1);
        assert_eq!(stats.get(Counter::ZeroPages), 0);
    }

    #[test]
    fn the_shorter_file_of_an_older_pager_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats");
        Writer::create(&path).unwrap().served(1);
        File::options().write(true).open(&path).unwrap().set_len(128).unwrap();
        let stats = Stats::read(&path).unwrap();
        assert_eq!(stats.get(Counter::Faults), 1);
    }
}
