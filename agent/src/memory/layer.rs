//! The memory layer file: the durable form of guest memory in a snapshot.
//!
//! ```text
//! offset 0      header, 64 bytes, little endian:
//!                 magic "HEARTHML" | version u32 | page u32 | chunk u32 | 0 u32 | ram_bytes u64 |
//!                 chunks u64 | index_offset u64 | index_xxh3 u64 | header_xxh3 u64 (of the 56 bytes before)
//! offset 64     frames: for each chunk with stored pages, a zstd frame of these pages, in order, nothing between
//! index_offset  one entry of 32 bytes per chunk:
//!                 offset u64 | length u32 | stored u16 | zero u16 | xxh3 u64 (of the uncompressed pages) | 0 u64
//! ```
//!
//! A page's bit is set in `stored` (its bytes are in the frame), in `zero` (it is all zero), or in neither (it is as
//! in the parent layer; never so in a layer without parent). A reader checks every number before it uses it: a file
//! that was cut or changed is refused with the reason, never read past its end.

use super::{CHUNK, CHUNK_PAGES, PAGE};
use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"HEARTHML";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 32;
/// Largest guest memory that a layer may describe: 1 TiB.
const RAM_BYTES_MAX: u64 = 1 << 40;
/// Longest frame of a chunk: zstd's ZSTD_COMPRESSBOUND (zstd.h) of an incompressible one, rounded up.
const FRAME_BYTES_MAX: usize = CHUNK + (CHUNK >> 4);
/// zstd level: 1 decompresses as fast as any and packs a Python process's heap 6:1.
const LEVEL: i32 = 1;

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file could not be read or written.
    #[error("memory layer: {0}")]
    Io(#[from] io::Error),
    /// Not a layer, or one of another version.
    #[error("memory layer: {0}")]
    Format(String),
    /// Pages that are not what was written.
    #[error("memory layer: checksum of chunk {chunk} does not match")]
    Checksum {
        /// Index of the chunk.
        chunk: usize,
    },
}

/// One chunk's place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    offset: u64,
    length: u32,
    /// Pages whose bytes are in the frame, bit 0 is the first.
    pub stored: u16,
    /// Pages that are all zero.
    pub zero: u16,
    checksum: u64,
}

/// An open layer: its index in memory, its frames on disk.
#[derive(Debug)]
pub struct Layer {
    file: File,
    ram_bytes: u64,
    checksum: u64,
    index: Vec<Entry>,
}

/// What a written layer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Pages whose bytes were stored.
    pub stored_pages: u64,
    /// Pages found all zero.
    pub zero_pages: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// Writes the layer of a whole memory: every page is stored or zero. `ram` is read in chunks; its length must be a
/// multiple of the chunk size. The file is synced before this returns.
pub fn write(ram: &File, ram_bytes: u64, out: &File) -> Result<Written, LayerError> {
    let mut writer = Writer::new(out.try_clone()?, ram_bytes)?;
    let mut chunk = vec![0; CHUNK];
    let mut pages = Vec::with_capacity(CHUNK);
    for number in 0..writer.chunks {
        ram.read_exact_at(&mut chunk, number * CHUNK as u64)?;
        pages.clear();
        let (mut stored, mut zero) = (0u16, 0u16);
        for (bit, page) in chunk.chunks_exact(PAGE).enumerate() {
            if is_zero(page) {
                zero |= 1 << bit;
            } else {
                stored |= 1 << bit;
                pages.extend_from_slice(page);
            }
        }
        writer.add(stored, zero, &pages)?;
    }
    let written = writer.finish()?;
    out.sync_all()?;
    Ok(written)
}

/// Whether a page is all zero.
pub(super) fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

/// (pure) The runs of set bits: first bit and length.
pub(super) fn runs(bits: u16) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = u32::from(bits) >> at;
        if rest == 0 || CHUNK_PAGES <= at {
            return None;
        }
        let first = at + rest.trailing_zeros() as usize;
        let length = (u32::from(bits) >> first).trailing_ones() as usize;
        at = first + length;
        Some((first, length))
    })
}

/// Writes a layer chunk by chunk, from the first to the last.
pub(super) struct Writer {
    frames: io::BufWriter<File>,
    compressor: zstd::bulk::Compressor<'static>,
    ram_bytes: u64,
    chunks: u64,
    index: Vec<u8>,
    offset: u64,
    written: Written,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("written", &self.written).finish_non_exhaustive()
    }
}

impl Writer {
    /// Begins the layer of `ram_bytes` of memory in an empty file.
    pub(super) fn new(out: File, ram_bytes: u64) -> Result<Self, LayerError> {
        if ram_bytes == 0 || !ram_bytes.is_multiple_of(CHUNK as u64) || RAM_BYTES_MAX < ram_bytes {
            return Err(LayerError::Format(format!("{ram_bytes} bytes of memory cannot be stored")));
        }
        let chunks = ram_bytes / CHUNK as u64;
        let mut frames = io::BufWriter::with_capacity(1 << 20, out);
        frames.write_all(&[0; HEADER_BYTES])?;
        Ok(Self {
            frames,
            compressor: zstd::bulk::Compressor::new(LEVEL)?,
            ram_bytes,
            chunks,
            index: Vec::with_capacity(chunks as usize * ENTRY_BYTES),
            offset: HEADER_BYTES as u64,
            written: Written { stored_pages: 0, zero_pages: 0, bytes: 0 },
        })
    }

    /// Adds the next chunk: which of its pages are stored (their bytes, in order, are `pages`), which are zero. Pages
    /// that are neither are as in the parent.
    pub(super) fn add(&mut self, stored: u16, zero: u16, pages: &[u8]) -> Result<(), LayerError> {
        if stored & zero != 0 || pages.len() != stored.count_ones() as usize * PAGE {
            return Err(LayerError::Format("a chunk's pages and bits do not fit".to_owned()));
        }
        let frame = if stored == 0 { Vec::new() } else { self.compressor.compress(pages)? };
        self.frames.write_all(&frame)?;
        let checksum = xxh3_64(pages);
        let entry = Entry { offset: self.offset, length: frame.len() as u32, stored, zero, checksum };
        entry.encode(&mut self.index);
        self.offset += frame.len() as u64;
        self.written.stored_pages += u64::from(stored.count_ones());
        self.written.zero_pages += u64::from(zero.count_ones());
        Ok(())
    }

    /// Writes index and header. Syncing is the caller's.
    pub(super) fn finish(mut self) -> Result<Written, LayerError> {
        if self.index.len() as u64 != self.chunks * ENTRY_BYTES as u64 {
            return Err(LayerError::Format("a layer without all of its chunks".to_owned()));
        }
        self.frames.write_all(&self.index)?;
        self.frames.flush()?;
        let header = header(self.ram_bytes, self.chunks, self.offset, xxh3_64(&self.index));
        self.frames.get_ref().write_all_at(&header, 0)?;
        self.written.bytes = self.offset + self.index.len() as u64;
        Ok(self.written)
    }
}

fn header(ram_bytes: u64, chunks: u64, index_offset: u64, index_checksum: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    for number in [VERSION, PAGE as u32, CHUNK as u32, 0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for number in [ram_bytes, chunks, index_offset, index_checksum] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let checksum = xxh3_64(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

impl Entry {
    fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.stored.to_le_bytes());
        out.extend_from_slice(&self.zero.to_le_bytes());
        out.extend_from_slice(&self.checksum.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
    }

    fn decode(bytes: &[u8]) -> Self {
        Self {
            offset: u64_at(bytes, 0),
            length: u32_at(bytes, 8),
            stored: u16::from_le_bytes([bytes[12], bytes[13]]),
            zero: u16::from_le_bytes([bytes[14], bytes[15]]),
            checksum: u64_at(bytes, 16),
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

impl Layer {
    /// Opens a layer and checks header, index and every frame's place.
    pub fn open(file: File) -> Result<Self, LayerError> {
        let format = |text: &str| LayerError::Format(text.to_owned());
        let size = file.metadata()?.len();
        let mut head = [0; HEADER_BYTES];
        if size < HEADER_BYTES as u64 {
            return Err(format("the file is shorter than its header"));
        }
        file.read_exact_at(&mut head, 0)?;
        if &head[..8] != MAGIC {
            return Err(format("not a memory layer"));
        }
        if u32_at(&head, 8) != VERSION {
            return Err(LayerError::Format(format!("version {} is not {VERSION}", u32_at(&head, 8))));
        }
        if xxh3_64(&head[..56]) != u64_at(&head, 56) {
            return Err(format("the header's checksum does not match"));
        }
        if u32_at(&head, 12) as usize != PAGE || u32_at(&head, 16) as usize != CHUNK {
            return Err(format("page or chunk size is not ours"));
        }
        let (ram_bytes, chunks, index_offset) = (u64_at(&head, 24), u64_at(&head, 32), u64_at(&head, 40));
        if RAM_BYTES_MAX < ram_bytes || chunks.checked_mul(CHUNK as u64) != Some(ram_bytes) {
            return Err(format("memory size and number of chunks do not fit"));
        }
        let index_bytes = chunks as usize * ENTRY_BYTES;
        if index_offset.checked_add(index_bytes as u64) != Some(size) {
            return Err(format("the file's length is not what the header says"));
        }
        let mut raw = vec![0; index_bytes];
        file.read_exact_at(&mut raw, index_offset)?;
        if xxh3_64(&raw) != u64_at(&head, 48) {
            return Err(format("the index's checksum does not match"));
        }
        let index: Vec<Entry> = raw.chunks_exact(ENTRY_BYTES).map(Entry::decode).collect();
        for entry in &index {
            let end = entry.offset.checked_add(u64::from(entry.length));
            if entry.stored & entry.zero != 0 || end.is_none_or(|end| index_offset < end) {
                return Err(format("an index entry points outside the frames"));
            }
            if FRAME_BYTES_MAX < entry.length as usize {
                return Err(format("a frame is longer than a chunk can be"));
            }
        }
        Ok(Self { file, ram_bytes, checksum: u64_at(&head, 56), index })
    }

    /// Names the layer by its content: the header's checksum covers the index's, which covers those of all pages.
    pub fn checksum(&self) -> u64 {
        self.checksum
    }

    /// Whether every page is stored or zero, so that no parent is needed.
    pub fn is_whole(&self) -> bool {
        self.index.iter().all(|entry| entry.stored | entry.zero == u16::MAX)
    }

    /// Bytes of guest memory.
    pub fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.index.len()
    }

    /// The entry of a chunk, `None` beyond the memory's end.
    pub fn entry(&self, chunk: usize) -> Option<Entry> {
        self.index.get(chunk).copied()
    }

    /// Reads a chunk's stored pages to their places in `out` (other pages are zeroed) and checks them.
    pub fn read(&self, chunk: usize, buffers: &mut Buffers) -> Result<Entry, LayerError> {
        let entry =
            self.entry(chunk).ok_or_else(|| LayerError::Format(format!("there is no chunk {chunk}")))?;
        buffers.chunk.fill(0);
        if entry.stored == 0 {
            return Ok(entry);
        }
        let length = entry.length as usize;
        self.file.read_exact_at(&mut buffers.frame[..length], entry.offset)?;
        let size =
            buffers.decompressor.decompress_to_buffer(&buffers.frame[..length], &mut buffers.pages[..])?;
        let expected = entry.stored.count_ones() as usize * PAGE;
        if size != expected || xxh3_64(&buffers.pages[..size]) != entry.checksum {
            return Err(LayerError::Checksum { chunk });
        }
        let mut from = 0;
        for bit in (0..CHUNK_PAGES).filter(|bit| entry.stored >> bit & 1 == 1) {
            buffers.chunk[bit * PAGE..][..PAGE].copy_from_slice(&buffers.pages[from..][..PAGE]);
            from += PAGE;
        }
        Ok(entry)
    }
}

/// Buffers of a reader, made once: the pager must not allocate for each fault.
pub struct Buffers {
    frame: Vec<u8>,
    pages: Vec<u8>,
    /// The chunk that was read last, every page at its place.
    pub chunk: Vec<u8>,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Buffers {
    /// Buffers for one reader.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            frame: vec![0; FRAME_BYTES_MAX],
            pages: vec![0; CHUNK],
            chunk: vec![0; CHUNK],
            decompressor: zstd::bulk::Decompressor::new()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn store(memory: &[u8]) -> (File, Written) {
        let ram = tempfile::tempfile().unwrap();
        ram.write_all_at(memory, 0).unwrap();
        let out = tempfile::tempfile().unwrap();
        let written = write(&ram, memory.len() as u64, &out).unwrap();
        (out, written)
    }

    fn memory(pages: &[(u8, bool)]) -> Vec<u8> {
        let chunks = pages.len().div_ceil(CHUNK_PAGES).max(1);
        let mut memory = vec![0; chunks * CHUNK];
        for (number, (byte, mixed)) in pages.iter().enumerate() {
            let page = &mut memory[number * PAGE..][..PAGE];
            page.fill(*byte);
            if *mixed {
                page[PAGE - 1] = byte.wrapping_add(1);
            }
        }
        memory
    }

    proptest! {
        #[test]
        fn runs_are_the_set_bits(bits: u16) {
            let mut seen = 0u16;
            for (first, length) in runs(bits) {
                for bit in first..first + length {
                    prop_assert_eq!(seen >> bit & 1, 0);
                    seen |= 1 << bit;
                }
            }
            prop_assert_eq!(seen, bits);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_page_comes_back(pages in proptest::collection::vec((0u8..4, any::<bool>()), 1..80)) {
            let memory = memory(&pages);
            let (file, written) = store(&memory);
            prop_assert_eq!(written.stored_pages + written.zero_pages, (memory.len() / PAGE) as u64);
            let layer = Layer::open(file).unwrap();
            let mut buffers = Buffers::new().unwrap();
            for chunk in 0..layer.chunks() {
                let entry = layer.read(chunk, &mut buffers).unwrap();
                prop_assert_eq!(&buffers.chunk[..], &memory[chunk * CHUNK..][..CHUNK]);
                prop_assert_eq!(entry.stored ^ entry.zero, u16::MAX);
            }
        }

        #[test]
        fn a_changed_byte_never_passes_for_good_memory(at in 0usize..6000, bit in 0u8..8) {
            let memory = memory(&[(1, true), (0, false), (2, false), (3, true)]);
            let (file, written) = store(&memory);
            let at = at as u64 % written.bytes;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            if let Ok(layer) = Layer::open(file) {
                let mut buffers = Buffers::new().unwrap();
                match layer.read(0, &mut buffers) {
                    Ok(_) => prop_assert_eq!(&buffers.chunk[..], &memory[..CHUNK]),
                    Err(error) => prop_assert!(!error.to_string().is_empty()),
                }
            }
        }
    }

    #[test]
    fn a_cut_file_is_refused() {
        let (file, written) = store(&memory(&[(1, true); 20]));
        for length in [0, 10, 64, written.bytes - 1] {
            file.set_len(length).unwrap();
            assert!(Layer::open(file.try_clone().unwrap()).is_err(), "{length}");
        }
    }

    #[test]
    fn a_foreign_file_is_named() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4096], 0).unwrap();
        assert!(Layer::open(file).unwrap_err().to_string().contains("not a memory layer"));
    }
}
