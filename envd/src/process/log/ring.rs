//! (pure) Bytes of several streams in the order in which they came, under absolute offsets; the oldest go first.

use super::Source;
use std::collections::VecDeque;

/// Changes of the stream that are kept: a process that alternates with every byte must not cost more than its bytes.
const RUNS_MAX: usize = 16 << 10;
const RUN_BYTES: usize = size_of::<(u64, Source)>();

/// The ring.
#[derive(Debug, Default)]
pub struct Ring {
    bytes: VecDeque<u8>,
    /// Where each run of one stream begins. The first may begin before what is kept.
    runs: VecDeque<(u64, Source)>,
    begin: u64,
}

impl Ring {
    /// Offset of the oldest byte that is kept.
    pub fn begin(&self) -> u64 {
        self.begin
    }

    /// Offset after the newest byte: the number of bytes that ever came.
    pub fn end(&self) -> u64 {
        self.begin + self.bytes.len() as u64
    }

    /// Bytes that are kept.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What it takes in memory.
    pub fn cost(&self) -> usize {
        self.bytes.capacity() + self.runs.capacity() * RUN_BYTES
    }

    /// Adds bytes.
    pub fn push(&mut self, source: Source, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.runs.back().is_none_or(|(_, last)| *last != source) {
            self.runs.push_back((self.end(), source));
        }
        self.bytes.extend(bytes);
    }

    /// What would be the oldest byte if `more` bytes came, in a run of their own, and `capacity` were kept.
    pub fn oldest_after(&self, more: usize, capacity: usize) -> u64 {
        let by_bytes = self.begin + (self.bytes.len() + more).saturating_sub(capacity) as u64;
        let runs = self.runs.len() + usize::from(0 < more);
        let by_runs = runs.checked_sub(RUNS_MAX).filter(|over| 0 < *over);
        let by_runs = by_runs.and_then(|over| self.runs.get(over)).map_or(self.begin, |(begin, _)| *begin);
        by_bytes.max(by_runs)
    }

    /// Drops what is older than this offset.
    pub fn forget_before(&mut self, offset: u64) {
        let count = usize::try_from(offset.saturating_sub(self.begin)).unwrap_or(usize::MAX);
        self.forget(count.min(self.bytes.len()));
    }

    /// Drops all but the newest `keep` bytes and gives back the memory.
    pub fn shrink(&mut self, keep: usize) {
        self.forget(self.bytes.len().saturating_sub(keep));
        self.bytes.shrink_to_fit();
        self.runs.shrink_to_fit();
    }

    /// A copy of what one stream wrote from `at` on: up to `max` bytes, and not beyond `limit`. An offset that is gone
    /// reads from the oldest byte on.
    pub fn read(&self, at: u64, limit: u64, max: usize) -> (Source, Vec<u8>) {
        let at = at.max(self.begin);
        let next = self.runs.partition_point(|(begin, _)| *begin <= at);
        let source = next.checked_sub(1).and_then(|run| self.runs.get(run));
        let source = source.map_or(Source::Stdout, |(_, source)| *source);
        let run_end = self.runs.get(next).map_or(self.end(), |(begin, _)| *begin);
        let from = usize::try_from(at - self.begin).unwrap_or(usize::MAX).min(self.bytes.len());
        let length = usize::try_from(run_end.min(limit).saturating_sub(at)).unwrap_or(usize::MAX);
        let length = length.min(max).min(self.bytes.len() - from);
        let (front, back) = self.bytes.as_slices();
        let mut copy = Vec::with_capacity(length);
        if from < front.len() {
            copy.extend_from_slice(&front[from..(from + length).min(front.len())]);
        }
        let rest = length - copy.len();
        let from = (from + copy.len()).saturating_sub(front.len());
        copy.extend_from_slice(&back[from..from + rest]);
        (source, copy)
    }

    fn forget(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.begin += count as u64;
        while self.runs.get(1).is_some_and(|(begin, _)| *begin <= self.begin) {
            self.runs.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ring: &Ring, mut at: u64) -> Vec<(Source, String)> {
        let mut parts = Vec::new();
        while at < ring.end() {
            let (source, bytes) = ring.read(at, u64::MAX, 4);
            assert!(!bytes.is_empty());
            at = at.max(ring.begin()) + bytes.len() as u64;
            parts.push((source, String::from_utf8(bytes).unwrap()));
        }
        parts
    }

    #[test]
    fn streams_keep_their_order_and_parts_of_one_join() {
        let mut ring = Ring::default();
        for (source, text) in
            [(Source::Stdout, "a"), (Source::Stdout, "b"), (Source::Stderr, "EEEEE"), (Source::Stdout, "c")]
        {
            ring.push(source, text.as_bytes());
        }
        let parts =
            [(Source::Stdout, "ab"), (Source::Stderr, "EEEE"), (Source::Stderr, "E"), (Source::Stdout, "c")];
        assert_eq!(all(&ring, 0), parts.map(|(source, text)| (source, text.to_owned())));
        assert_eq!(ring.read(3, 5, 100), (Source::Stderr, b"EE".to_vec()), "not beyond the limit");
    }

    #[test]
    fn the_oldest_go_first_and_offsets_stay() {
        let mut ring = Ring::default();
        for number in 0..1000_u32 {
            let source = if number % 7 < 3 { Source::Stdout } else { Source::Stderr };
            ring.push(source, &[number.to_le_bytes()[0]; 3]);
            ring.forget_before(ring.oldest_after(0, 100));
            assert!(ring.len() <= 100);
        }
        assert_eq!((ring.begin(), ring.end()), (2900, 3000));
        let mut at = ring.begin();
        while at < ring.end() {
            let (source, bytes) = ring.read(at, u64::MAX, 1);
            let number = u32::try_from(at / 3).unwrap();
            assert_eq!(bytes, [number.to_le_bytes()[0]]);
            assert_eq!(source == Source::Stdout, number % 7 < 3, "{at}");
            at += 1;
        }
        ring.shrink(10);
        assert_eq!((ring.begin(), ring.len()), (2990, 10));
    }

    #[test]
    fn streams_that_alternate_are_bounded_too() {
        let mut ring = Ring::default();
        for number in 0..100_000_u32 {
            let source = if number % 2 == 0 { Source::Stdout } else { Source::Stderr };
            ring.push(source, b"x");
            ring.forget_before(ring.oldest_after(0, 1 << 20));
        }
        assert_eq!(ring.len(), RUNS_MAX);
        assert!(ring.cost() < 1 << 20);
    }
}
