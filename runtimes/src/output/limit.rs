//! Keeps the head and the tail of a stream and counts what is left out between them. Pure.

use super::utf8;
use std::collections::VecDeque;

/// One stream's limit. The head (half of the limit) passes through at once; what follows is kept until the
/// end, and of that only the last half of the limit.
#[derive(Debug)]
pub(super) struct Limiter {
    head_left: usize,
    tail_max: usize,
    tail: VecDeque<u8>,
    omitted: u64,
}

impl Limiter {
    /// A limiter that lets about `max` bytes through.
    pub(super) fn new(max: usize) -> Self {
        let tail_max = max / 2;
        Self { head_left: max - tail_max, tail_max, tail: VecDeque::new(), omitted: 0 }
    }

    /// Takes `data` and returns the part of it that passes through now.
    pub(super) fn push<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let size = if data.len() <= self.head_left {
            data.len()
        } else {
            let size = utf8::floor(data, self.head_left);
            // The head is closed: nothing may pass it any more.
            self.head_left = size;
            size
        };
        self.head_left -= size;
        let (now, rest) = data.split_at(size);
        self.keep(rest);
        now
    }

    fn keep(&mut self, data: &[u8]) {
        let surplus = (self.tail.len() + data.len()).saturating_sub(self.tail_max);
        let old = surplus.min(self.tail.len());
        self.tail.drain(..old);
        self.tail.extend(&data[surplus - old..]);
        self.omitted += surplus as u64;
    }

    /// What comes at the end: the tail, after a marker if bytes were left out; and whether they were.
    pub(super) fn finish(mut self) -> (Vec<u8>, bool) {
        if self.omitted == 0 {
            return (self.tail.into(), false);
        }
        let cut = utf8::continuations(self.tail.iter().copied());
        self.tail.drain(..cut);
        let mut end = format!("\n… {} bytes omitted …\n", self.omitted + cut as u64).into_bytes();
        end.extend(self.tail);
        (end, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(max: usize, pieces: &[Vec<u8>]) -> (Vec<u8>, bool) {
        let mut limiter = Limiter::new(max);
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(limiter.push(piece));
            assert!(limiter.tail.len() <= max);
        }
        let (end, cut) = limiter.finish();
        out.extend(end);
        (out, cut)
    }

    #[test]
    fn head_and_tail_stay_with_a_marker_between() {
        let (out, cut) = run(10, &[b"0123456789".to_vec(), b"abcdefghij".to_vec()]);
        assert!(cut);
        assert_eq!(String::from_utf8(out).unwrap(), "01234\n… 10 bytes omitted …\nfghij");
    }

    #[test]
    fn characters_are_not_split_at_the_cuts() {
        let (out, cut) = run(10, &["éééééééééé".as_bytes().to_vec()]);
        assert!(cut);
        assert_eq!(String::from_utf8(out).unwrap(), "éé\n… 12 bytes omitted …\néé");
    }

    proptest! {
        #[test]
        fn short_output_is_whole(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..20), extra in 0usize..50) {
            let whole = pieces.concat();
            let (out, cut) = run(whole.len() * 2 + 8 + extra, &pieces);
            prop_assert!(!cut);
            prop_assert_eq!(out, whole);
        }

        #[test]
        fn nothing_is_lost_uncounted(pieces in prop::collection::vec("\\PC{0,30}", 0..30), max in 0usize..200) {
            let pieces: Vec<Vec<u8>> = pieces.into_iter().map(String::into_bytes).collect();
            let whole = String::from_utf8(pieces.concat()).unwrap();
            let (out, cut) = run(max, &pieces);
            let out = String::from_utf8(out).unwrap();
            if cut {
                let (head, rest) = out.split_once("\n… ").unwrap();
                let (count, tail) = rest.split_once(" bytes omitted …\n").unwrap();
                prop_assert!(whole.starts_with(head) && whole.ends_with(tail));
                prop_assert_eq!(head.len() + tail.len() + count.parse::<usize>().unwrap(), whole.len());
                prop_assert!(head.len() + tail.len() <= max);
            } else {
                prop_assert_eq!(out, whole);
            }
        }
    }
}
