//! (pure) The limit on a stream: its head goes out as it comes, its tail at the end, and a line says what is missing.

use std::collections::VecDeque;

/// Keeps the first and the last half of `max` bytes of a stream; memory is bounded by the tail's half.
#[derive(Debug)]
pub struct Limit {
    head_left: usize,
    tail_max: usize,
    tail: VecDeque<u8>,
    omitted: u64,
}

/// What is left to send at the end of a stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Rest {
    /// The bytes held back, with the marker in front when some are missing. May be empty.
    pub bytes: Vec<u8>,
    /// Whether bytes are missing.
    pub truncated: bool,
}

impl Limit {
    /// A limit of `max` bytes, the marker not counted.
    pub fn new(max: usize) -> Self {
        let tail_max = max / 2;
        Self { head_left: max - tail_max, tail_max, tail: VecDeque::new(), omitted: 0 }
    }

    /// Takes the next bytes of the stream; returns how many of them, from the first, go out now. The others were
    /// kept or dropped.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let head = bytes.len().min(self.head_left);
        self.head_left -= head;
        self.keep(&bytes[head..]);
        head
    }

    /// Ends the stream.
    pub fn finish(&mut self) -> Rest {
        let mut bytes = Vec::new();
        let truncated = 0 < self.omitted;
        if truncated {
            bytes.extend_from_slice(format!("\n… {} bytes omitted …\n", self.omitted).as_bytes());
        }
        bytes.extend(std::mem::take(&mut self.tail));
        Rest { bytes, truncated }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let fits = &bytes[bytes.len().saturating_sub(self.tail_max)..];
        let over = (self.tail.len() + fits.len()).saturating_sub(self.tail_max);
        self.tail.drain(..over);
        self.omitted += (over + bytes.len() - fits.len()) as u64;
        self.tail.extend(fits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(max: usize, chunks: &[&str]) -> (String, bool) {
        let mut limit = Limit::new(max);
        let mut out = Vec::new();
        for chunk in chunks {
            let now = limit.take(chunk.as_bytes());
            out.extend_from_slice(&chunk.as_bytes()[..now]);
        }
        let rest = limit.finish();
        out.extend(rest.bytes);
        (String::from_utf8(out).unwrap(), rest.truncated)
    }

    #[test]
    fn what_fits_is_unchanged() {
        assert_eq!(through(10, &["0123456789"]), ("0123456789".into(), false));
        assert_eq!(through(10, &["01", "", "2345678", "9"]), ("0123456789".into(), false));
        assert_eq!(through(0, &[]), (String::new(), false));
    }

    #[test]
    fn head_and_tail_are_kept_and_the_missing_bytes_counted() {
        assert_eq!(through(4, &["0123456789"]), ("01\n… 6 bytes omitted …\n89".into(), true));
        assert_eq!(through(4, &["0", "1", "2", "3", "4"]), ("01\n… 1 bytes omitted …\n34".into(), true));
        assert_eq!(through(1, &["abc"]), ("a\n… 2 bytes omitted …\n".into(), true));
    }
}
