//! A copier on anonymous memory of this process, as Firecracker has it.

use super::{super::layer, *};
use memmap2::MmapMut;
use std::{
    io::Write,
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
};
use userfaultfd::{FeatureFlags, UffdBuilder};

fn layer_of(memory: &[u8]) -> Layer {
    let ram = tempfile::tempfile().unwrap();
    ram.write_all_at(memory, 0).unwrap();
    let out = tempfile::tempfile().unwrap();
    layer::write(&ram, memory.len() as u64, &out).unwrap();
    Layer::open(out).unwrap()
}

/// Each page holds its number, every third is zero.
fn sample(pages: usize) -> Vec<u8> {
    (0..pages * PAGE).map(|at| if at / PAGE % 3 == 2 { 0 } else { (at / PAGE) as u8 + 1 }).collect()
}

#[test]
fn a_guest_reads_its_memory_and_zeros_where_it_gave_memory_back() {
    let memory = sample(8 * CHUNK_PAGES);
    let guest = MmapMut::map_anon(memory.len()).unwrap();
    let address = guest.as_ptr() as u64;
    let uffd = UffdBuilder::new()
        .non_blocking(true)
        .require_features(FeatureFlags::EVENT_REMOVE)
        .create()
        .expect("userfaultfd needs root");
    uffd.register(address as *mut _, memory.len()).unwrap();
    // Two regions, as a machine with a gap below 4 GiB has.
    let half = memory.len() as u64 / 2;
    let regions = vec![
        Region { address, length: half, offset: 0 },
        Region { address: address + half, length: half, offset: half },
    ];
    let image = tempfile::tempfile_in("/dev/shm").unwrap();
    image.set_len(memory.len() as u64).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats");
    let mut copier = Copier::new(
        layer_of(&memory),
        image,
        Writer::create(&path).unwrap(),
        Buffers::new().unwrap(),
        (uffd, regions),
    );
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || copier.serve(&[theirs.as_fd()]));
    // Backwards, so that runs and single pages meet.
    for page in (0..memory.len() / PAGE).rev().step_by(5) {
        assert_eq!(guest[page * PAGE], memory[page * PAGE], "page {page}");
    }
    assert!(guest[..] == memory[..], "the rest is right as well");
    let back = CHUNK..2 * CHUNK;
    // SAFETY: a range of our own anonymous mapping, which nobody else reads meanwhile.
    let advised =
        unsafe { libc::madvise(guest.as_ptr().add(back.start) as *mut _, back.len(), libc::MADV_DONTNEED) };
    assert_eq!(advised, 0);
    assert!(guest[back.clone()].iter().all(|byte| *byte == 0), "what was given back reads as zero");
    assert!(guest[back.end..] == memory[back.end..], "its neighbours do not");
    ours.write_all(&[0]).unwrap();
    server.join().unwrap().unwrap();
    let stats = super::super::stats::Stats::read(&path).unwrap();
    assert!(stats.get(Counter::Faults) > 0 && stats.get(Counter::CopiedPages) > 0, "{stats:?}");
    assert!(stats.get(Counter::FilledPages) > 0, "the image is filled on the way: {stats:?}");
}
