//! Which pages of guest memory a VMM has as its own, and what is in them: by /proc, while its vCPUs stand still.
//!
//! Guest memory is a private mapping of the image. A page that the guest only read is the image's and counts as file
//! mapped in /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst: bit 63 present, 62 swapped, 61 file page or
//! shared anonymous). Every other page that is there was written, or answered by a private copy or the zero page:
//! whoever asks compares them with the parent.

use super::{CHUNK, CHUNK_PAGES, PAGE};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;
/// Bytes of a page's entry in pagemap.
const ENTRY: usize = 8;
/// Entries read at once.
const BLOCK: usize = 32 << 10;

/// Why a VMM's memory cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WrittenError {
    /// A file of /proc failed.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The VMM does not map the image as it should.
    #[error("the VMM does not map all of the memory image once")]
    Mapping,
}

/// A part of guest memory in the VMM's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    address: u64,
    /// Offset in guest memory.
    offset: u64,
    length: u64,
}

/// A stopped VMM's guest memory.
#[derive(Debug)]
pub struct Memory {
    memory: File,
    pagemap: File,
    parts: Vec<Part>,
    ram_bytes: u64,
}

impl Memory {
    /// The guest memory of process `pid`, which maps `image` of `ram_bytes`. The caller holds the process: its pid is
    /// not another's.
    pub fn open(pid: i32, image: &Path, ram_bytes: u64) -> Result<Self, WrittenError> {
        let open = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            File::open(&path).map_err(|source| WrittenError::File { path, source })
        };
        let meta = fs::metadata(image)
            .map_err(|source| WrittenError::File { path: image.display().to_string(), source })?;
        let path = format!("/proc/{pid}/maps");
        let maps = fs::read_to_string(&path).map_err(|source| WrittenError::File { path, source })?;
        let device = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
        let mut parts = parts(&maps, device, meta.ino());
        parts.sort_by_key(|part| part.offset);
        if !covers(&parts, ram_bytes) {
            return Err(WrittenError::Mapping);
        }
        Ok(Self { memory: open("mem")?, pagemap: open("pagemap")?, parts, ram_bytes })
    }

    /// The pages that are the VMM's own, a bit each, a value per chunk.
    pub fn written(&self) -> io::Result<Vec<u16>> {
        let mut bits = vec![0u16; (self.ram_bytes as usize).div_ceil(CHUNK)];
        let mut block = vec![0u8; BLOCK * ENTRY];
        for part in &self.parts {
            let pages = part.length / PAGE as u64;
            let first = part.address / PAGE as u64;
            let mut done = 0;
            while done < pages {
                let count = ((pages - done) as usize).min(BLOCK);
                let bytes = &mut block[..count * ENTRY];
                self.pagemap.read_exact_at(bytes, (first + done) * ENTRY as u64)?;
                for (number, entry) in bytes.chunks_exact(ENTRY).enumerate() {
                    if is_own(entry) {
                        let page = (part.offset / PAGE as u64 + done) as usize + number;
                        bits[page / CHUNK_PAGES] |= 1 << (page % CHUNK_PAGES);
                    }
                }
                done += count as u64;
            }
        }
        Ok(bits)
    }

    /// Reads guest memory at `offset`. Only pages that [`Memory::written`] names are asked for: others would be
    /// faulted in.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        for part in &self.parts {
            let at = offset + done as u64;
            if done < out.len() && (part.offset..part.offset + part.length).contains(&at) {
                let skipped = at - part.offset;
                let count = ((part.length - skipped) as usize).min(out.len() - done);
                self.memory.read_exact_at(&mut out[done..done + count], part.address + skipped)?;
                done += count;
            }
        }
        if done == out.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// (pure) Whether a page's entry says that it is there and not the image's.
fn is_own(entry: &[u8]) -> bool {
    let entry = entry.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    entry & (PRESENT | SWAPPED) != 0 && entry & FILE == 0
}

/// (pure) The mappings of a file in the text of /proc/PID/maps, proc(5): `from-to mode offset major:minor inode path`.
fn parts(maps: &str, device: (u64, u64), inode: u64) -> Vec<Part> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let part = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let (from, to) = (hex(from)?, hex(to)?);
        let offset = hex(fields.nth(1)?)?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let is_it = (hex(major)?, hex(minor)?) == device && fields.next()?.parse::<u64>().ok()? == inode;
        (is_it && from < to).then_some(Part { address: from, offset, length: to - from })
    };
    maps.lines().filter_map(part).collect()
}

/// (pure) Whether the parts, in the order of their offsets, are all of the memory, each byte once.
fn covers(parts: &[Part], ram_bytes: u64) -> bool {
    let end = parts.iter().try_fold(0u64, |end, part| {
        let aligned = part.length.is_multiple_of(PAGE as u64) && part.address.is_multiple_of(PAGE as u64);
        (part.offset == end && aligned).then(|| end.checked_add(part.length))?
    });
    end == Some(ram_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mappings_of_the_image_count_and_they_must_be_all_of_it() {
        let maps = "7f0000000000-7f0000010000 rw-p 00000000 00:2a 17   /memory\n\
                    7f0000010000-7f0000020000 rw-p 00010000 00:2a 17   /memory (deleted)\n\
                    7f0000030000-7f0000040000 rw-p 00000000 00:2b 17   /other\n\
                    7f0000050000-7f0000060000 rw-p 00000000 00:00 0\n\
                    nonsense\n";
        let found = parts(maps, (0, 0x2a), 17);
        assert_eq!(found.len(), 2);
        assert!(covers(&found, 0x20000));
        assert!(!covers(&found, 0x30000));
        assert!(!covers(&found[1..], 0x10000));
        assert!(!covers(&[], 0x10000));
        let twice = [found[0], found[0]];
        assert!(!covers(&twice, 0x20000));
    }

    #[test]
    fn a_page_of_the_image_is_not_the_vmms_own() {
        let entry = |bits: u64| is_own(&bits.to_le_bytes());
        assert!(!entry(0));
        assert!(!entry(PRESENT | FILE));
        assert!(entry(PRESENT));
        assert!(entry(SWAPPED));
    }

    #[test]
    fn written_pages_of_a_private_mapping_are_found_and_read() {
        let image = tempfile::Builder::new().tempfile_in("/dev/shm").unwrap();
        let bytes = 2 * CHUNK;
        image.as_file().set_len(bytes as u64).unwrap();
        image.as_file().write_all_at(&[5; 4 * PAGE], 0).unwrap();
        // SAFETY: a private mapping of a file that only this test has.
        #[expect(unsafe_code, reason = "a private mapping to look at")]
        let mut map = unsafe { memmap2::MmapOptions::new().map_copy(image.as_file()).unwrap() };
        let read_only = map[PAGE];
        assert_eq!(read_only, 5);
        map[2 * PAGE] = 7;
        map[CHUNK + 3 * PAGE] = 8;
        let pid = i32::try_from(std::process::id()).unwrap();
        let memory = Memory::open(pid, image.path(), bytes as u64).unwrap();
        assert_eq!(memory.written().unwrap(), [0b100, 0b1000]);
        let mut page = [0; PAGE];
        memory.read(2 * PAGE as u64, &mut page).unwrap();
        assert_eq!((page[0], page[1]), (7, 5));
        assert!(memory.read(bytes as u64, &mut page).is_err());
        assert!(Memory::open(pid, image.path(), 4 * CHUNK as u64).is_err());
    }
}
