//! The pager of a Firecracker: its guest memory is anonymous, so every page is given by a copy or as the zero page.
//!
//! Pages come from the same image as QEMU's, filled by the same rule: a chunk is decompressed once for all capsules of
//! a host. Ranges that the guest gives back (balloon: a REMOVE event) read as zero from then on. While such an event
//! waits the kernel refuses every answer (EAGAIN), and it hands out faults before it: so all events that are there are
//! read first, and a refused answer is tried again.

#![expect(unsafe_code, reason = "answers faults at the VMM's addresses")]

pub mod handshake;

use super::{
    CHUNK, CHUNK_PAGES, PAGE,
    fill::{FillError, fill},
    layer::{Buffers, Layer, LayerError, runs},
    pager::{PagerError, ZERO_AHEAD, is_gone, system},
    stats::{Counter, Writer},
};
use handshake::Region;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    collections::VecDeque,
    fs::File,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::FileExt,
    },
    time::Instant,
};
use userfaultfd::{Event, EventBuffer, Uffd};

/// Events read at once.
const EVENTS: usize = 64;
/// Between two attempts when the kernel refuses answers and has no event to read: the thread that gave memory back is
/// about to go on.
const RETRY_MS: u16 = 1;

/// Whether a range was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Given,
    /// The kernel wants an event to be read first.
    Later,
}

/// What is at a page for one guest.
#[derive(Debug, Clone, Copy, Default)]
struct Pages {
    /// Given: not to be copied again.
    given: u16,
    /// Given back by the guest: zero from then on.
    removed: u16,
}

/// The capsule's own pages over the template's.
pub struct Over {
    layer: Layer,
    buffers: Buffers,
}

impl Over {
    /// Of a generation's layer.
    pub fn new(layer: Layer) -> Result<Self, PagerError> {
        let buffers = Buffers::new().map_err(|source| PagerError::System { what: "decompressor", source })?;
        Ok(Self { layer, buffers })
    }
}

/// Where a chunk's pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Places {
    /// In the template's layer.
    below: u16,
    /// In the capsule's own.
    above: u16,
    /// Nowhere: they are zero.
    zero: u16,
}

impl Places {
    /// (pure) A page that is stored or zero above hides the one below.
    fn new(below: (u16, u16), above: (u16, u16)) -> Self {
        let ((stored, zero), (stored_above, zero_above)) = (below, above);
        let shows = !(stored_above | zero_above);
        Self { below: stored & shows, above: stored_above, zero: (zero & shows) | zero_above }
    }
}

/// Serves one Firecracker.
pub struct Copier {
    layer: Layer,
    over: Option<Over>,
    image: File,
    stats: Writer,
    buffers: Buffers,
    uffd: Uffd,
    regions: Vec<Region>,
    chunks: Vec<Pages>,
    /// Faults that were read and not answered yet.
    waiting: VecDeque<u64>,
}

impl Copier {
    /// A copier of checked regions: they cover the memory of the layers, which are of one size.
    pub fn new(
        (layer, over): (Layer, Option<Over>),
        image: File,
        stats: Writer,
        buffers: Buffers,
        (uffd, regions): (Uffd, Vec<Region>),
    ) -> Self {
        let chunks = vec![Pages::default(); layer.chunks()];
        Self { layer, over, image, stats, buffers, uffd, regions, chunks, waiting: VecDeque::new() }
    }

    /// Serves events until one of `ends` is readable or closed: the VMM is gone.
    pub fn serve(&mut self, ends: &[BorrowedFd<'_>]) -> Result<(), PagerError> {
        let uffd = self.uffd.as_raw_fd();
        let mut events = EventBuffer::new(EVENTS);
        loop {
            // SAFETY: the descriptor lives in `self.uffd`, which outlives this borrow.
            let uffd = unsafe { BorrowedFd::borrow_raw(uffd) };
            let mut waits = vec![PollFd::new(uffd, PollFlags::POLLIN)];
            waits.extend(ends.iter().map(|end| PollFd::new(*end, PollFlags::POLLIN)));
            let timeout =
                if self.waiting.is_empty() { PollTimeout::NONE } else { PollTimeout::from(RETRY_MS) };
            match poll(&mut waits, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(system("poll")(error)),
            }
            let gone = waits[1..].iter().any(|wait| wait.any().unwrap_or(false));
            self.read(&mut events)?;
            self.answer()?;
            if gone {
                return Ok(());
            }
        }
    }

    /// Reads all events that are there: ranges that were given back are noted, faults wait.
    fn read(&mut self, buffer: &mut EventBuffer) -> Result<(), PagerError> {
        loop {
            let mut events = Vec::with_capacity(EVENTS);
            match self.uffd.read_events(buffer) {
                Ok(read) => {
                    for event in read {
                        events.push(event.map_err(|source| PagerError::Uffd { what: "event", source })?);
                    }
                }
                Err(userfaultfd::Error::SystemError(errno)) if is_gone(errno as i32) => return Ok(()),
                Err(source) => return Err(PagerError::Uffd { what: "event", source }),
            }
            for event in &events {
                match event {
                    Event::Pagefault { addr, .. } => self.waiting.push_back(*addr as u64),
                    Event::Remove { start, end } => self.removed(*start as u64, *end as u64)?,
                    // Not asked for by Firecracker.
                    _ => return Err(PagerError::Handshake(format!("an unexpected event: {event:?}"))),
                }
            }
            if events.len() < EVENTS {
                return Ok(());
            }
        }
    }

    /// Answers the waiting faults, as far as the kernel lets it.
    fn answer(&mut self) -> Result<(), PagerError> {
        while let Some(address) = self.waiting.front().copied() {
            let start = Instant::now();
            if self.fault(address)? == Answer::Later {
                return Ok(());
            }
            self.waiting.pop_front();
            self.stats.served(start.elapsed().as_micros() as u64);
        }
        Ok(())
    }

    /// The region of an address and the address's offset in guest memory.
    fn place(&self, address: u64) -> Result<(Region, u64), PagerError> {
        self.regions
            .iter()
            .find(|region| region.address <= address && address - region.address < region.length)
            .map(|region| (*region, region.offset + (address - region.address)))
            .ok_or_else(|| PagerError::Handshake(format!("an event at {address:#x} outside the regions")))
    }

    fn removed(&mut self, start: u64, end: u64) -> Result<(), PagerError> {
        let mut address = start;
        while address < end {
            let (_, offset) = self.place(address)?;
            let bit = 1 << page_of(offset);
            let pages = &mut self.chunks[chunk_of(offset)];
            pages.removed |= bit;
            pages.given &= !bit;
            address += PAGE as u64;
        }
        Ok(())
    }

    fn fault(&mut self, address: u64) -> Result<Answer, PagerError> {
        let address = address - address % PAGE as u64;
        let (region, offset) = self.place(address)?;
        let (chunk, bit) = (chunk_of(offset), 1u16 << page_of(offset));
        let places =
            self.places(chunk).ok_or_else(|| LayerError::Format(format!("there is no chunk {chunk}")))?;
        let pages = self.chunks[chunk];
        if pages.removed & bit != 0 {
            return self.zero(address, PAGE as u64);
        }
        if places.zero & bit != 0 {
            return self.zero(address, self.zero_run(region, offset));
        }
        if (places.below | places.above) & bit == 0 {
            return Err(LayerError::Format(format!("chunk {chunk} lacks a page")).into());
        }
        let wanted = (places.below | places.above) & !pages.given & !pages.removed;
        if wanted & bit == 0 {
            // Two vCPUs met at the same page.
            return self.wake(address, PAGE as u64);
        }
        self.source(chunk, places, wanted)?;
        self.give(chunk, wanted, address - (offset % CHUNK as u64))
    }

    /// Length of the run of zero pages that begins at `offset`, within bounds.
    fn zero_run(&self, region: Region, offset: u64) -> u64 {
        let end = region.offset + region.length;
        let limit = (offset + ZERO_AHEAD).min(end);
        let is_free = |at: u64| {
            let (chunk, bit) = (chunk_of(at), 1u16 << page_of(at));
            let pages = self.chunks[chunk];
            (pages.given | pages.removed) & bit == 0
                && self.places(chunk).is_some_and(|places| places.zero & bit != 0)
        };
        let mut at = offset + PAGE as u64;
        while at < limit && is_free(at) {
            at += PAGE as u64;
        }
        at - offset
    }

    /// Where a chunk's pages are; none beyond the memory's end.
    fn places(&self, chunk: usize) -> Option<Places> {
        let below = self.layer.entry(chunk)?;
        let above = self.over.as_ref().and_then(|over| over.layer.entry(chunk));
        let above = above.map_or((0, 0), |entry| (entry.stored, entry.zero));
        Some(Places::new((below.stored, below.zero), above))
    }

    /// Brings the wanted pages of a chunk into the buffer: the template's, then the capsule's own over them.
    fn source(&mut self, chunk: usize, places: Places, wanted: u16) -> Result<(), PagerError> {
        if places.below & wanted != 0 {
            self.template(chunk)?;
        }
        if let Some(over) = self.over.as_mut().filter(|_| places.above & wanted != 0) {
            over.layer.read(chunk, &mut over.buffers)?;
            for (bit, pages) in runs(places.above) {
                let range = bit * PAGE..(bit + pages) * PAGE;
                self.buffers.chunk[range.clone()].copy_from_slice(&over.buffers.chunk[range]);
            }
        }
        Ok(())
    }

    /// Brings a chunk of the template into the buffer: from the image, which is filled on the way.
    fn template(&mut self, chunk: usize) -> Result<(), PagerError> {
        match fill(&self.image, &self.layer, chunk, &mut self.buffers) {
            Ok((_, 0)) => self
                .image
                .read_exact_at(&mut self.buffers.chunk, (chunk * CHUNK) as u64)
                .map_err(|error| FillError::from(error).into()),
            Ok((_, pages)) => {
                self.stats.add(Counter::FilledPages, pages);
                Ok(())
            }
            // The tmpfs is full: this guest's copy comes from the layer itself.
            Err(FillError::Full) => self.layer.read(chunk, &mut self.buffers).map(drop).map_err(Into::into),
            Err(error) => Err(error.into()),
        }
    }

    /// Copies the `wanted` pages of the chunk in the buffer to the guest; the chunk begins at `base`.
    fn give(&mut self, chunk: usize, wanted: u16, base: u64) -> Result<Answer, PagerError> {
        let mut bit = 0;
        while bit < CHUNK_PAGES {
            let run = (wanted >> bit).trailing_ones() as usize;
            if run == 0 {
                bit += 1;
                continue;
            }
            let given = self.copy(bit * PAGE, run * PAGE, base)?;
            for page in bit..bit + given / PAGE {
                self.chunks[chunk].given |= 1 << page;
            }
            if given < run * PAGE {
                return Ok(Answer::Later);
            }
            bit += run;
        }
        Ok(Answer::Given)
    }

    /// Copies bytes of the buffer to the guest and wakes it. Returns how many are there now; fewer when the kernel
    /// wants an event to be read first.
    fn copy(&self, from: usize, length: usize, base: u64) -> Result<usize, PagerError> {
        let source = &self.buffers.chunk[from..][..length];
        let mut at = 0;
        while at < length {
            let to = base + (from + at) as u64;
            // SAFETY: `source` is live memory of ours, `to` lies inside a registered region of the VMM, both for
            // `length - at` bytes.
            match unsafe { self.uffd.copy(source[at..].as_ptr().cast(), to as *mut _, length - at, true) } {
                Ok(count) => {
                    self.stats.add(Counter::CopiedPages, (count / PAGE) as u64);
                    at += count;
                }
                Err(userfaultfd::Error::PartiallyCopied(count)) if (PAGE..length - at).contains(&count) => {
                    self.stats.add(Counter::CopiedPages, (count / PAGE) as u64);
                    at += count;
                }
                // The crate gives a negative errno as a huge count, and nothing copied as zero.
                Err(userfaultfd::Error::PartiallyCopied(_)) => return Ok(at),
                Err(userfaultfd::Error::CopyFailed(errno)) if errno as i32 == libc::EEXIST => {
                    self.wake(to, PAGE as u64)?;
                    at += PAGE;
                }
                Err(userfaultfd::Error::CopyFailed(errno)) if is_gone(errno as i32) => return Ok(length),
                Err(source) => return Err(PagerError::Uffd { what: "UFFDIO_COPY", source }),
            }
        }
        Ok(at)
    }

    /// Answers with zero pages: `length` bytes of them, or only one when some are there already.
    fn zero(&self, address: u64, length: u64) -> Result<Answer, PagerError> {
        for length in [length, PAGE as u64] {
            // SAFETY: the range is inside a registered region of the VMM; nothing of this process is touched.
            match unsafe { self.uffd.zeropage(address as *mut _, length as usize, true) } {
                Ok(_) => {
                    self.stats.add(Counter::ZeroPages, length / PAGE as u64);
                    return Ok(Answer::Given);
                }
                Err(userfaultfd::Error::ZeropageFailed(errno)) if is_gone(errno as i32) => {
                    return Ok(Answer::Given);
                }
                Err(userfaultfd::Error::ZeropageFailed(errno)) if length > PAGE as u64 => {
                    // A page of the run is there, or an event waits: then only the one that was asked for.
                    debug_assert!([libc::EEXIST, libc::EAGAIN].contains(&(errno as i32)));
                }
                Err(userfaultfd::Error::ZeropageFailed(errno)) if errno as i32 == libc::EEXIST => {
                    return self.wake(address, PAGE as u64);
                }
                Err(userfaultfd::Error::ZeropageFailed(errno)) if errno as i32 == libc::EAGAIN => {
                    return Ok(Answer::Later);
                }
                Err(source) => return Err(PagerError::Uffd { what: "UFFDIO_ZEROPAGE", source }),
            }
        }
        self.wake(address, PAGE as u64)
    }

    fn wake(&self, address: u64, length: u64) -> Result<Answer, PagerError> {
        match self.uffd.wake(address as *mut _, length as usize) {
            Ok(()) => Ok(Answer::Given),
            Err(userfaultfd::Error::SystemError(errno)) if is_gone(errno as i32) => Ok(Answer::Given),
            Err(source) => Err(PagerError::Uffd { what: "UFFDIO_WAKE", source }),
        }
    }
}

fn chunk_of(offset: u64) -> usize {
    (offset / CHUNK as u64) as usize
}

fn page_of(offset: u64) -> usize {
    (offset % CHUNK as u64) as usize / PAGE
}

#[cfg(test)]
mod tests;
