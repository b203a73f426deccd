//! Frames: u32 little-endian length, then that many bytes. Pure but for the read.

use std::io;

/// Largest frame accepted from a kernel.
pub(crate) const FRAME_BYTES_MAX: usize = 64 << 20;
/// A buffer that grew beyond this is given back once it is empty.
const KEEP_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 64 << 10;

/// A frame whose length is not allowed: the stream cannot be trusted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes was announced")]
pub(crate) struct BadFrame(u32);

/// Takes frames out of a byte stream.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// Received bytes are `buffer[start..end]`; what follows is room for the next read.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Frames {
    /// Appends what `read` puts into a slice; returns how many bytes that were.
    pub(crate) fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.buffer.truncate(KEEP_BYTES);
            self.buffer.shrink_to(KEEP_BYTES);
        } else if self.start >= READ_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        // Grows with what arrives, not with what a header claims.
        let room = self.end + READ_BYTES;
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        let count = read(&mut self.buffer[self.end..])?;
        self.end += count;
        Ok(count)
    }

    /// The next whole frame's content.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, BadFrame> {
        let rest = &self.buffer[self.start..self.end];
        let Some((head, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let announced = u32::from_le_bytes(*head);
        let size = announced as usize;
        if size > FRAME_BYTES_MAX {
            return Err(BadFrame(announced));
        }
        if body.len() < size {
            return Ok(None);
        }
        let from = self.start + 4;
        self.start = from + size;
        Ok(Some(&self.buffer[from..from + size]))
    }
}

/// `content` as a frame. Requests are bounded far below the limit of a frame.
pub(crate) fn encode(content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(4 + content.len());
    frame.extend_from_slice(&size.to_le_bytes());
    frame.extend_from_slice(content);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed(frames: &mut Frames, bytes: &[u8]) {
        frames
            .fill(|slice| {
                slice[..bytes.len()].copy_from_slice(bytes);
                Ok(bytes.len())
            })
            .unwrap();
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20), cuts in prop::collection::vec(1usize..200, 1..50)) {
            let stream: Vec<u8> = contents.iter().flat_map(|content| encode(content)).collect();
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            let mut rest = &stream[..];
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                feed(&mut frames, piece);
                rest = after;
                while let Some(frame) = frames.next().unwrap() {
                    seen.push(frame.to_vec());
                }
            }
            prop_assert_eq!(seen, contents);
        }

        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut frames = Frames::default();
            feed(&mut frames, &bytes);
            while let Ok(Some(_)) = frames.next() {}
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_it_is_waited_for() {
        let mut frames = Frames::default();
        feed(&mut frames, b"junk");
        assert_eq!(frames.next(), Err(BadFrame(u32::from_le_bytes(*b"junk"))));
    }
}
