//! The output window: text that a kernel holds back, seen before it is sent.
//!
//! A kernel keeps a cell's text in memory shared with us and sends it when the cell ends or the window is
//! full, so that a short cell costs one write. We look at it when a run has been quiet for a few
//! milliseconds, and once more when the process has died. Layout and rules: `hearth_channel.py`.
//!
//! What was shown early comes again in a `stream` message; `skip` tells how much of that is old.
//! The content is as untrusted as everything from a kernel: it is copied out with `pread` and bounds are
//! checked.

use super::Source;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Size of the window: how much text is held back at most.
const WINDOW_BYTES: usize = 32 << 10;
const HEAD_BYTES: usize = 16;

/// Where a kernel is in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not in a cell: an interrupt would be ignored.
    Idle,
    /// In the cell's code.
    Running,
    /// The code has ended; what it ended with is being reported.
    Ending,
}

/// Our side of one kernel's window.
#[derive(Debug)]
pub(crate) struct Window {
    file: File,
    /// Bytes shown early and not yet received, per source.
    shown: [usize; 2],
    buffer: Box<[u8]>,
}

impl Window {
    /// A new, empty window.
    pub(crate) fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("hearth-window", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(WINDOW_BYTES as u64)?;
        Ok(Self { file, shown: [0; 2], buffer: vec![0; WINDOW_BYTES].into_boxed_slice() })
    }

    /// The shared memory, for the kernel to map.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Forgets what was shown: a new run begins.
    pub(crate) fn reset(&mut self) {
        self.shown = [0; 2];
    }

    /// Where the kernel is in a cell, as it says.
    pub(crate) fn phase(&self) -> Phase {
        let mut word = [0; 4];
        match self.file.read_exact_at(&mut word, 8).map(|()| u32::from_le_bytes(word)) {
            Ok(1) => Phase::Running,
            Ok(2) => Phase::Ending,
            Ok(_) | Err(_) => Phase::Idle,
        }
    }

    /// Calls `show` with text that is new, if nothing sent before it is still under way: `received` is the
    /// number of frames received from this kernel.
    pub(crate) fn peek(&mut self, received: u32, mut show: impl FnMut(Source, &[u8])) {
        let Ok((sent, end)) = self.head() else { return };
        if sent != received || end <= HEAD_BYTES || end > WINDOW_BYTES {
            return;
        }
        let text = &mut self.buffer[..end - HEAD_BYTES];
        if self.file.read_exact_at(text, HEAD_BYTES as u64).is_err() {
            return;
        }
        // Text is only ever appended until the next frame is sent: the same number means it is whole.
        if self.head().map(|head| head.0) != Ok(sent) {
            return;
        }
        let text = &self.buffer[..end - HEAD_BYTES];
        let mut seen = [0; 2];
        for (source, text) in Records(text) {
            let index = source as usize;
            let old = self.shown[index].saturating_sub(seen[index]).min(text.len());
            seen[index] += text.len();
            if old < text.len() {
                show(source, &text[old..]);
            }
        }
        for (shown, seen) in self.shown.iter_mut().zip(seen) {
            *shown = seen.max(*shown);
        }
    }

    /// How many bytes at the start of this received text were shown already.
    pub(crate) fn skip(&mut self, source: Source, text: &[u8]) -> usize {
        let shown = &mut self.shown[source as usize];
        let old = (*shown).min(text.len());
        *shown -= old;
        old
    }

    fn head(&self) -> Result<(u32, usize), io::ErrorKind> {
        let mut head = [0; 8];
        self.file.read_exact_at(&mut head, 0).map_err(|error| error.kind())?;
        let [a, b, c, d, e, f, g, h] = head;
        Ok((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]) as usize))
    }
}

/// The records of a window's text: tag byte, u32 length (0: to the end), text. Ends at the first junk.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = (Source, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[tag, a, b, c, d], rest) = self.0.split_first_chunk::<5>()?;
        let source = match tag {
            1 => Source::Stdout,
            2 => Source::Stderr,
            _ => return None,
        };
        let size = match u32::from_le_bytes([a, b, c, d]) as usize {
            0 => rest.len(),
            size => size.min(rest.len()),
        };
        let (text, rest) = rest.split_at(size);
        self.0 = rest;
        Some((source, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(window: &Window, sent: u32, text: &[u8]) {
        let end = u32::try_from(HEAD_BYTES + text.len()).unwrap();
        window.file.write_all_at(text, HEAD_BYTES as u64).unwrap();
        window.file.write_all_at(&sent.to_le_bytes(), 0).unwrap();
        window.file.write_all_at(&end.to_le_bytes(), 4).unwrap();
    }

    fn peek(window: &mut Window, received: u32) -> Vec<(Source, String)> {
        let mut seen = Vec::new();
        window.peek(received, |source, text| seen.push((source, String::from_utf8_lossy(text).into_owned())));
        seen
    }

    #[test]
    fn text_is_shown_once_and_skipped_when_it_arrives() {
        let mut window = Window::new().unwrap();
        write(&window, 3, b"\x01\0\0\0\0ab");
        assert_eq!(peek(&mut window, 3), [(Source::Stdout, "ab".into())]);
        assert_eq!(peek(&mut window, 3), []);
        write(&window, 3, b"\x01\x03\0\0\0abc\x02\0\0\0\0err");
        assert_eq!(peek(&mut window, 3), [(Source::Stdout, "c".into()), (Source::Stderr, "err".into())]);
        assert_eq!(window.skip(Source::Stdout, b"abcde"), 3);
        assert_eq!(window.skip(Source::Stderr, b"err"), 3);
        assert_eq!(window.skip(Source::Stderr, b"more"), 0);
    }

    #[test]
    fn text_behind_frames_under_way_is_not_shown() {
        let mut window = Window::new().unwrap();
        write(&window, 3, b"\x01\0\0\0\0ab");
        assert_eq!(peek(&mut window, 2), []);
    }

    proptest! {
        #[test]
        fn junk_never_panics(text in prop::collection::vec(any::<u8>(), 0..500), end in any::<u32>()) {
            let mut window = Window::new().unwrap();
            write(&window, 0, &text);
            window.file.write_all_at(&end.to_le_bytes(), 4).unwrap();
            peek(&mut window, 0);
        }
    }
}
