//! A capsule's own pages as a Firecracker wrote them into a file by its snapshot calls, and below them the pages that it
//! was restored with.
//!
//! Each differential snapshot of one Firecracker goes into the same sparse file, which Firecracker merges: so what has
//! data in it is what was written since the restore, as it was at the instant of the last snapshot's device state. The
//! VMM's live memory is not read: its devices go on while its vCPUs stand still, and a packet that arrives after the
//! device state was saved would be in one and not in the other.
//!
//! Where a page that was not written shows as data, it would be taken for zero. So the file has to be on a filesystem
//! that tells holes by the page ([`tells_holes`]); on others every snapshot is a full one.

use super::{
    CHUNK, CHUNK_PAGES, PAGE,
    layer::{Buffers, Layer, LayerError},
};
use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use std::{
    cell::RefCell,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

/// Pages of the file that tries a filesystem's holes.
const TRIAL_PAGES: u64 = 64;

/// Why a dump cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DumpedError {
    /// The file could not be read.
    #[error("the VMM's memory file: {0}")]
    File(#[from] io::Error),
    /// It is not what was asked for.
    #[error("the VMM's memory file {0}")]
    Format(&'static str),
    /// The pages that the capsule was restored with are damaged.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

/// What a snapshot call left.
#[derive(Debug)]
pub struct Dump {
    /// The memory file. It is a guest's and its VMM's: not trusted.
    pub memory: File,
    /// Whether all of guest memory has to be in it.
    pub is_whole: bool,
    /// The layer of the generation that the capsule was restored from.
    pub under: Option<File>,
}

/// A capsule's own pages.
pub struct Dumped {
    memory: File,
    /// Pages in the file, a bit each, a value per chunk.
    bits: Vec<u16>,
    under: Option<Layer>,
    buffers: RefCell<Buffers>,
}

impl Dumped {
    /// Checks a dump of `ram_bytes` of memory, and finds its pages.
    pub fn open(dump: Dump, ram_bytes: u64) -> Result<Self, DumpedError> {
        let Dump { memory, is_whole, under } = dump;
        if memory.metadata()?.len() != ram_bytes || !ram_bytes.is_multiple_of(CHUNK as u64) {
            return Err(DumpedError::Format("is not of the guest memory's size"));
        }
        let bits = data(&memory, ram_bytes)?;
        if is_whole && bits.iter().any(|bits| *bits != u16::MAX) {
            return Err(DumpedError::Format("lacks pages of a full snapshot"));
        }
        let under = under.map(Layer::open).transpose()?;
        if under.as_ref().is_some_and(|layer| layer.ram_bytes() != ram_bytes) {
            return Err(DumpedError::Format("and the layer below differ in size"));
        }
        Ok(Self { memory, bits, under, buffers: RefCell::new(Buffers::new()?) })
    }

    /// The capsule's own pages, a bit each, a value per chunk.
    pub fn written(&self) -> Vec<u16> {
        let under = |chunk| self.under.as_ref().and_then(|layer| layer.entry(chunk));
        let below = |chunk| under(chunk).map_or(0, |entry| entry.stored | entry.zero);
        self.bits.iter().enumerate().map(|(chunk, bits)| bits | below(chunk)).collect()
    }

    /// Reads memory at `offset`: whole pages of one chunk, which [`Dumped::written`] names.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut buffers = self.buffers.borrow_mut();
        let mut read = None;
        for (number, page) in out.chunks_mut(PAGE).enumerate() {
            let at = offset + (number * PAGE) as u64;
            let (chunk, bit) = ((at / CHUNK as u64) as usize, (at % CHUNK as u64) as usize / PAGE);
            let bits = *self.bits.get(chunk).ok_or(io::ErrorKind::UnexpectedEof)?;
            if bits >> bit & 1 == 1 {
                self.memory.read_exact_at(page, at)?;
                continue;
            }
            let under = self.under.as_ref().ok_or(io::ErrorKind::NotFound)?;
            if read != Some(chunk) {
                // Pages that are zero in the layer are zero in the buffer.
                under.read(chunk, &mut buffers).map_err(io::Error::other)?;
                read = Some(chunk);
            }
            page.copy_from_slice(&buffers.chunk[bit * PAGE..][..page.len()]);
        }
        Ok(())
    }
}

/// Pages of a file that have data, a bit each, a value per chunk.
fn data(file: &File, bytes: u64) -> io::Result<Vec<u16>> {
    let mut bits = vec![0u16; (bytes as usize).div_ceil(CHUNK)];
    let mut at = 0;
    while at < bytes {
        let data = match lseek(file, at as i64, Whence::SeekData) {
            Ok(data) if (data as u64) < bytes => data as u64,
            Ok(_) | Err(Errno::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = (lseek(file, data as i64, Whence::SeekHole)? as u64).min(bytes);
        for page in data as usize / PAGE..(hole as usize).div_ceil(PAGE) {
            bits[page / CHUNK_PAGES] |= 1 << (page % CHUNK_PAGES);
        }
        // A file that changes meanwhile must not hold this up.
        at = hole.max(at + PAGE as u64);
    }
    Ok(bits)
}

/// Whether the filesystem of `folder` tells the holes of a sparse file by the page.
pub fn tells_holes(folder: &Path) -> io::Result<bool> {
    let path = folder.join(format!(".holes-{}", std::process::id()));
    let outcome = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
    let outcome = outcome.and_then(|file| try_holes(&file));
    fs::remove_file(&path)?;
    outcome
}

fn try_holes(file: &File) -> io::Result<bool> {
    let bytes = TRIAL_PAGES * PAGE as u64;
    file.set_len(bytes)?;
    let mut expected = vec![0u16; (bytes as usize).div_ceil(CHUNK)];
    // Single pages, neighbours, and zeros, which are data as well.
    for (page, byte) in [(1, 1), (3, 0), (20, 1), (21, 1), (40, 0), (63, 1)] {
        file.write_all_at(&[byte; PAGE], page * PAGE as u64)?;
        expected[page as usize / CHUNK_PAGES] |= 1 << (page as usize % CHUNK_PAGES);
    }
    let before = data(file, bytes)?;
    file.sync_all()?;
    Ok(before == expected && data(file, bytes)? == expected)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{difference, layer},
        *,
    };
    use proptest::prelude::*;

    const PAGES: usize = 3 * CHUNK_PAGES;

    fn memory(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().flat_map(|byte| vec![*byte; PAGE]).collect()
    }

    fn sparse() -> File {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len((PAGES * PAGE) as u64).unwrap();
        file
    }

    fn whole(memory: &[u8]) -> Layer {
        let (ram, out) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        ram.write_all_at(memory, 0).unwrap();
        layer::write(&ram, memory.len() as u64, &out).unwrap();
        Layer::open(out).unwrap()
    }

    /// The layer of a dump over a template's memory.
    fn capture(template: &[u8], memory: &File, under: Option<File>) -> File {
        let parent = difference::Parent::new(whole(template), sparse()).unwrap();
        let dump = Dump { memory: memory.try_clone().unwrap(), is_whole: false, under };
        let dumped = Dumped::open(dump, template.len() as u64).unwrap();
        let out = tempfile::tempfile().unwrap();
        let read = |at: u64, page: &mut [u8]| dumped.read(at, page);
        difference::read(&parent, &dumped.written(), read, out.try_clone().unwrap())
            .unwrap()
            .finish()
            .unwrap();
        out
    }

    fn apply(template: &[u8], layer: &File) -> Vec<u8> {
        let layer = Layer::open(layer.try_clone().unwrap()).unwrap();
        let (mut memory, mut buffers) = (template.to_vec(), Buffers::new().unwrap());
        for page in 0..PAGES {
            let entry = layer.read(page / CHUNK_PAGES, &mut buffers).unwrap();
            let bit = page % CHUNK_PAGES;
            if (entry.stored | entry.zero) >> bit & 1 == 1 {
                memory[page * PAGE..][..PAGE].copy_from_slice(&buffers.chunk[bit * PAGE..][..PAGE]);
            }
        }
        memory
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn lives_of_several_captures_lose_no_page(
            template in proptest::collection::vec(0u8..3, PAGES),
            // Per life: what is written between its captures.
            lives in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec((0..PAGES, 0u8..3), 0..12), 1..4), 1..4),
        ) {
            let mut now = template.clone();
            let template = memory(&template);
            let mut under: Option<File> = None;
            for life in lives {
                // A new VMM: nothing is in its file; each snapshot merges what was written since the last.
                let file = sparse();
                for writes in life {
                    for (page, byte) in writes {
                        now[page] = byte;
                        file.write_all_at(&[byte; PAGE], (page * PAGE) as u64).unwrap();
                    }
                    let below = under.as_ref().map(|layer| layer.try_clone().unwrap());
                    let layer = capture(&template, &file, below);
                    prop_assert_eq!(apply(&template, &layer), memory(&now));
                }
                under = Some(capture(&template, &file, under));
            }
        }
    }

    #[test]
    fn a_file_of_another_size_and_an_incomplete_full_one_are_refused() {
        let open = |memory: &File, is_whole, ram_bytes| {
            Dumped::open(Dump { memory: memory.try_clone().unwrap(), is_whole, under: None }, ram_bytes)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default()
        };
        let (file, bytes) = (sparse(), (PAGES * PAGE) as u64);
        assert!(open(&file, false, bytes + CHUNK as u64).contains("size"));
        file.write_all_at(&vec![1; PAGES * PAGE - PAGE], 0).unwrap();
        assert!(open(&file, true, bytes).contains("full snapshot"));
        file.write_all_at(&[0; PAGE], bytes - PAGE as u64).unwrap();
        assert_eq!(open(&file, true, bytes), "");
    }

    #[test]
    fn holes_are_told_by_the_page_and_the_trial_leaves_nothing() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(tells_holes(folder.path()).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(tells_holes(&folder.path().join("missing")).is_err());
    }
}
