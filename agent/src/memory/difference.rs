//! The layer of a capsule over its template's: only pages that differ.
//!
//! A page that the capsule has as its own is compared with the parent's. The same content is left out, whatever made
//! the page the capsule's. A page that became zero is recorded as zero: left out, it would come back as the parent's.

use super::{
    CHUNK, CHUNK_PAGES, PAGE,
    fill::{FillError, present},
    layer::{Buffers, Layer, LayerError, Writer, Written, is_zero, runs},
};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Pages that are kept in memory; when there are more, they are written while the vCPUs stand still.
const KEPT_BYTES: usize = 256 << 20;

/// Why a difference cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DifferenceError {
    /// The capsule's memory could not be read.
    #[error("guest memory: {0}")]
    Memory(#[source] io::Error),
    /// The parent, or the new layer, failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The parent's image failed.
    #[error(transparent)]
    Image(#[from] FillError),
}

/// What a capsule's memory is compared with: a whole layer, and the image that it is filled into.
#[derive(Debug)]
pub struct Parent {
    layer: Layer,
    image: File,
}

impl Parent {
    /// A parent. Pages that are in the image already are read from there, without decompression.
    pub fn new(layer: Layer, image: File) -> Result<Self, LayerError> {
        if !layer.is_whole() {
            return Err(LayerError::Format("the parent is a difference itself".to_owned()));
        }
        Ok(Self { layer, image })
    }

    /// Reads the wanted pages of a chunk to their places in `buffers.chunk`; others there mean nothing.
    fn read(&self, chunk: usize, wanted: u16, buffers: &mut Buffers) -> Result<(), DifferenceError> {
        let entry = self
            .layer
            .entry(chunk)
            .ok_or_else(|| LayerError::Format(format!("there is no chunk {chunk}")))?;
        let stored = entry.stored & wanted;
        if stored & !present(&self.image, chunk)? != 0 {
            self.layer.read(chunk, buffers)?;
            return Ok(());
        }
        for (bit, pages) in runs(stored) {
            let at = (chunk * CHUNK + bit * PAGE) as u64;
            let bytes = &mut buffers.chunk[bit * PAGE..][..pages * PAGE];
            self.image.read_exact_at(bytes, at).map_err(FillError::Image)?;
        }
        for (bit, pages) in runs(wanted & !stored) {
            buffers.chunk[bit * PAGE..][..pages * PAGE].fill(0);
        }
        Ok(())
    }
}

/// A difference whose pages are read; most of them are not compressed and written yet, which can wait until the vCPUs
/// run again.
#[derive(Debug)]
pub struct Pending {
    writer: Writer,
    chunks: Vec<Chunk>,
    bytes: usize,
    /// Pages that differ.
    pub pages: u64,
}

#[derive(Debug)]
struct Chunk {
    stored: u16,
    zero: u16,
    pages: Vec<u8>,
}

/// Reads the pages in `own` (a bit each, a value per chunk) and keeps those that differ from the parent's. `memory`
/// reads the capsule's memory at an offset; it is asked for pages in `own` only.
pub fn read(
    parent: &Parent,
    own: &[u16],
    memory: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    out: File,
) -> Result<Pending, DifferenceError> {
    if own.len() != parent.layer.chunks() {
        return Err(LayerError::Format("memory and parent differ in size".to_owned()).into());
    }
    let writer = Writer::new(out, parent.layer.ram_bytes())?;
    let mut pending = Pending { writer, chunks: Vec::new(), bytes: 0, pages: 0 };
    let mut buffers = Buffers::new().map_err(LayerError::Io)?;
    let mut mine = vec![0; CHUNK];
    for (chunk, own) in own.iter().copied().enumerate() {
        if own != 0 {
            parent.read(chunk, own, &mut buffers)?;
        }
        for (bit, pages) in runs(own) {
            let bytes = &mut mine[bit * PAGE..][..pages * PAGE];
            memory((chunk * CHUNK + bit * PAGE) as u64, bytes).map_err(DifferenceError::Memory)?;
        }
        pending.add(differing(own, &mine, &buffers.chunk))?;
    }
    Ok(pending)
}

/// (pure) What of a chunk's own pages differs from the parent's.
fn differing(own: u16, mine: &[u8], parents: &[u8]) -> Chunk {
    let mut chunk = Chunk { stored: 0, zero: 0, pages: Vec::new() };
    for bit in (0..CHUNK_PAGES).filter(|bit| own >> bit & 1 == 1) {
        let page = &mine[bit * PAGE..][..PAGE];
        if *page == parents[bit * PAGE..][..PAGE] {
            continue;
        }
        if is_zero(page) {
            chunk.zero |= 1 << bit;
        } else {
            chunk.stored |= 1 << bit;
            chunk.pages.extend_from_slice(page);
        }
    }
    chunk
}

impl Pending {
    fn add(&mut self, chunk: Chunk) -> Result<(), LayerError> {
        self.pages += u64::from((chunk.stored | chunk.zero).count_ones());
        self.bytes += chunk.pages.len();
        self.chunks.push(chunk);
        if KEPT_BYTES < self.bytes { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), LayerError> {
        for Chunk { stored, zero, pages } in self.chunks.drain(..) {
            self.writer.add(stored, zero, &pages)?;
        }
        self.bytes = 0;
        Ok(())
    }

    /// Compresses and writes what is not written yet. Syncing the file is the caller's.
    pub fn finish(mut self) -> Result<Written, DifferenceError> {
        self.flush()?;
        Ok(self.writer.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::layer, *};
    use proptest::prelude::*;

    fn layer_of(memory: &[u8]) -> Layer {
        let ram = tempfile::tempfile().unwrap();
        ram.write_all_at(memory, 0).unwrap();
        let out = tempfile::tempfile().unwrap();
        layer::write(&ram, memory.len() as u64, &out).unwrap();
        Layer::open(out).unwrap()
    }

    fn image_of(memory: &[u8], filled: &[bool]) -> File {
        let image = tempfile::tempfile_in("/dev/shm").unwrap();
        image.set_len(memory.len() as u64).unwrap();
        for (page, filled) in filled.iter().enumerate() {
            let bytes = &memory[page * PAGE..][..PAGE];
            if *filled && !is_zero(bytes) {
                image.write_all_at(bytes, (page * PAGE) as u64).unwrap();
            }
        }
        image
    }

    fn difference(parent: &Parent, own: &[u16], child: &[u8]) -> (Layer, Written) {
        let out = tempfile::tempfile().unwrap();
        let memory = |at: u64, page: &mut [u8]| {
            page.copy_from_slice(&child[at as usize..][..page.len()]);
            Ok(())
        };
        let pending = read(parent, own, memory, out.try_clone().unwrap()).unwrap();
        let pages = pending.pages;
        let written = pending.finish().unwrap();
        assert_eq!(written.stored_pages + written.zero_pages, pages);
        (Layer::open(out).unwrap(), written)
    }

    /// What a pager makes of the parent's memory and the layer.
    fn apply(parent: &[u8], layer: &Layer) -> Vec<u8> {
        let mut memory = parent.to_vec();
        let mut buffers = Buffers::new().unwrap();
        for chunk in 0..layer.chunks() {
            let entry = layer.read(chunk, &mut buffers).unwrap();
            for bit in 0..CHUNK_PAGES {
                let to = &mut memory[chunk * CHUNK + bit * PAGE..][..PAGE];
                if entry.stored >> bit & 1 == 1 {
                    to.copy_from_slice(&buffers.chunk[bit * PAGE..][..PAGE]);
                } else if entry.zero >> bit & 1 == 1 {
                    to.fill(0);
                }
            }
        }
        memory
    }

    const PAGES: usize = 2 * CHUNK_PAGES;

    fn memory(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().flat_map(|byte| vec![*byte; PAGE]).collect()
    }

    fn bits(own: &[bool]) -> Vec<u16> {
        own.chunks(CHUNK_PAGES)
            .map(|chunk| chunk.iter().enumerate().fold(0, |bits, (bit, own)| bits | u16::from(*own) << bit))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn parent_and_difference_give_the_childs_memory(
            before in proptest::collection::vec(0u8..4, PAGES),
            after in proptest::collection::vec(0u8..4, PAGES),
            touched in proptest::collection::vec(any::<bool>(), PAGES),
            filled in proptest::collection::vec(any::<bool>(), PAGES),
        ) {
            let parent_memory = memory(&before);
            // A page that differs is one's own; others may be (zero page, private copy).
            let child = memory(&after);
            let own: Vec<bool> = (0..PAGES).map(|page| touched[page] || before[page] != after[page]).collect();
            let parent = Parent::new(layer_of(&parent_memory), image_of(&parent_memory, &filled)).unwrap();
            let (layer, written) = difference(&parent, &bits(&own), &child);
            prop_assert_eq!(apply(&parent_memory, &layer), child);
            let differing = (0..PAGES).filter(|page| before[*page] != after[*page]).count() as u64;
            prop_assert_eq!(written.stored_pages + written.zero_pages, differing, "no page too many");
        }
    }

    #[test]
    fn a_page_that_became_zero_is_recorded_as_zero_not_as_unchanged() {
        let before = memory(&[1; PAGES]);
        let mut child = before.clone();
        child[3 * PAGE..4 * PAGE].fill(0);
        let parent = Parent::new(layer_of(&before), image_of(&before, &[true; PAGES])).unwrap();
        let (layer, written) = difference(&parent, &[0b1000, 0], &child);
        assert_eq!((written.stored_pages, written.zero_pages), (0, 1));
        let entry = layer.entry(0).unwrap();
        assert_eq!((entry.stored, entry.zero), (0, 0b1000));
        assert_eq!(apply(&before, &layer), child);
        assert!(!layer.is_whole());
        assert!(Parent::new(layer, tempfile::tempfile().unwrap()).is_err(), "a difference is no parent");
    }

    #[test]
    fn a_page_that_stayed_zero_is_left_out() {
        let before = memory(&[0; PAGES]);
        let parent = Parent::new(layer_of(&before), image_of(&before, &[false; PAGES])).unwrap();
        let (layer, written) = difference(&parent, &[u16::MAX, u16::MAX], &before);
        assert_eq!((written.stored_pages, written.zero_pages), (0, 0));
        assert_eq!(layer.entry(1).unwrap().zero, 0);
    }
}
