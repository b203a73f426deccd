//! Filling an image: each chunk once, whoever comes first.
//!
//! Several pagers share an image. A chunk is filled under a write lock of its byte range (open file description locks,
//! fcntl(2)): two opens of the image exclude each other, and the kernel drops the lock of a process that dies.
//! Only holes are written; a page that is in the image is never written again.

use super::{
    CHUNK, CHUNK_PAGES, PAGE,
    layer::{Buffers, Entry, Layer, LayerError},
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    unistd::{Whence, lseek},
};
use std::{fs::File, io, os::unix::fs::FileExt};

/// Why a chunk could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The source failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The image could not be locked, read or written.
    #[error("memory image: {0}")]
    Image(#[from] io::Error),
    /// The tmpfs is full; the caller answers the page by a private copy.
    #[error("memory image: no room left")]
    Full,
}

/// Writes the chunk's stored pages into the holes of the image. Returns the chunk's entry and how many pages were
/// written. Afterwards `buffers.chunk` holds the chunk's content unless it was already complete.
pub fn fill(
    image: &File,
    layer: &Layer,
    chunk: usize,
    buffers: &mut Buffers,
) -> Result<(Entry, u64), FillError> {
    let entry = layer.entry(chunk).ok_or_else(|| LayerError::Format(format!("there is no chunk {chunk}")))?;
    let lock = lock(image, chunk)?;
    let missing = entry.stored & !present(image, chunk)?;
    if missing == 0 {
        return Ok((entry, 0));
    }
    layer.read(chunk, buffers)?;
    let mut bit = 0;
    while bit < CHUNK_PAGES {
        if missing >> bit & 1 == 0 {
            bit += 1;
            continue;
        }
        let length = (missing >> bit).trailing_ones() as usize;
        let bytes = &buffers.chunk[bit * PAGE..][..length * PAGE];
        match image.write_all_at(bytes, (chunk * CHUNK + bit * PAGE) as u64) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => return Err(FillError::Full),
            Err(error) => return Err(error.into()),
        }
        bit += length;
    }
    drop(lock);
    Ok((entry, u64::from(missing.count_ones())))
}

/// Pages of the chunk that are in the image.
pub(super) fn present(image: &File, chunk: usize) -> Result<u16, FillError> {
    let start = (chunk * CHUNK) as i64;
    let end = start + CHUNK as i64;
    let mut bits = 0u16;
    let mut at = start;
    while at < end {
        let data = match lseek(image, at, Whence::SeekData) {
            Ok(data) if data < end => data,
            Ok(_) | Err(Errno::ENXIO) => break,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let hole = lseek(image, data, Whence::SeekHole).map_err(io::Error::from)?.min(end);
        for page in (data - start) as usize / PAGE..(hole - start) as usize / PAGE {
            bits |= 1 << page;
        }
        at = hole;
    }
    Ok(bits)
}

struct Lock<'a> {
    image: &'a File,
    chunk: usize,
}

fn lock(image: &File, chunk: usize) -> Result<Lock<'_>, FillError> {
    loop {
        match fcntl(image, FcntlArg::F_OFD_SETLKW(&range(chunk, libc::F_WRLCK))) {
            Ok(_) => return Ok(Lock { image, chunk }),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if let Err(error) = fcntl(self.image, FcntlArg::F_OFD_SETLK(&range(self.chunk, libc::F_UNLCK))) {
            tracing::error!(%error, chunk = self.chunk, "a chunk of a memory image stays locked");
        }
    }
}

fn range(chunk: usize, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: (chunk * CHUNK) as i64,
        l_len: CHUNK as i64,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::layer, *};

    fn layer_of(memory: &[u8]) -> Layer {
        let ram = tempfile::tempfile().unwrap();
        ram.write_all_at(memory, 0).unwrap();
        let out = tempfile::tempfile().unwrap();
        layer::write(&ram, memory.len() as u64, &out).unwrap();
        Layer::open(out).unwrap()
    }

    #[test]
    fn only_holes_are_written_and_zero_pages_stay_holes() {
        let mut memory = vec![0; 2 * CHUNK];
        memory[PAGE..2 * PAGE].fill(1);
        memory[3 * PAGE..5 * PAGE].fill(2);
        let layer = layer_of(&memory);
        // On tmpfs, as in production: SEEK_DATA is page-exact there.
        let image = tempfile::tempfile_in("/dev/shm").unwrap();
        image.set_len(memory.len() as u64).unwrap();
        image.write_all_at(&[9; PAGE], 3 * PAGE as u64).unwrap();
        let mut buffers = Buffers::new().unwrap();
        let (entry, pages) = fill(&image, &layer, 0, &mut buffers).unwrap();
        assert_eq!(pages, 2);
        assert_eq!(entry.stored, 0b11010);
        assert_eq!(present(&image, 0).unwrap(), 0b11010);
        let mut page = [0; PAGE];
        image.read_exact_at(&mut page, 3 * PAGE as u64).unwrap();
        assert_eq!(page, [9; PAGE], "a page that was there is not written again");
        assert_eq!(fill(&image, &layer, 0, &mut buffers).unwrap().1, 0);
        assert_eq!(fill(&image, &layer, 1, &mut buffers).unwrap().1, 0);
        assert!(fill(&image, &layer, 2, &mut buffers).is_err());
    }
}
