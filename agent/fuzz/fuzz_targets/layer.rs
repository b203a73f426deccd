//! Memory layers. Checksums of header and index are put right first, so that the numbers behind them are reached.

#![no_main]

use hearth_agent::memory::{
    CHUNK, PAGE,
    layer::{Buffers, Layer},
};
use libfuzzer_sys::fuzz_target;
use std::{io::Write, os::fd::AsFd, sync::OnceLock};
use xxhash_rust::xxh3::xxh3_64;

const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 32;

/// First byte: whether and how the file is made plausible. The rest: its bytes.
fn plausible(how: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = rest.to_vec();
    if how & 1 == 0 || bytes.len() < HEADER_BYTES {
        return bytes;
    }
    bytes[..8].copy_from_slice(b"HEARTHML");
    for (at, number) in [(8, 1), (12, PAGE as u32), (16, CHUNK as u32), (20, 0)] {
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    let chunks = (how as usize >> 1).min((bytes.len() - HEADER_BYTES) / ENTRY_BYTES);
    let index = bytes.len() - chunks * ENTRY_BYTES;
    let checksum = xxh3_64(&bytes[index..]);
    for (at, number) in
        [(24, (chunks * CHUNK) as u64), (32, chunks as u64), (40, index as u64), (48, checksum)]
    {
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let checksum = xxh3_64(&bytes[..56]);
    bytes[56..64].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fuzz_target!(|data: &[u8]| {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let Some((how, rest)) = data.split_first() else { return };
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder"));
    let path = folder.path().join("layer");
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .expect("a file");
    file.write_all(&plausible(*how, rest)).expect("a file");
    let file = std::fs::File::from(file.as_fd().try_clone_to_owned().expect("a descriptor"));
    let Ok(layer) = Layer::open(file) else { return };
    let mut buffers = Buffers::new().expect("buffers");
    for chunk in 0..layer.chunks() + 1 {
        if let Ok(entry) = layer.read(chunk, &mut buffers) {
            assert_eq!(entry.stored & entry.zero, 0);
            assert_eq!(buffers.chunk.len(), CHUNK);
        }
    }
});
