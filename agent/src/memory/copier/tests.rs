//! A copier on anonymous memory of this process, as Firecracker has it.

use super::{
    super::{difference, layer},
    *,
};
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
        (layer_of(&memory), None),
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

#[test]
fn the_capsules_own_pages_hide_the_templates() {
    let below = sample(6 * CHUNK_PAGES);
    let mut memory = below.clone();
    // In each chunk: a page changed, a zero page written, a page that became zero. The last chunk is all its own.
    for chunk in 0..5 {
        let page = |bit: usize| (chunk * CHUNK_PAGES + bit) * PAGE..(chunk * CHUNK_PAGES + bit + 1) * PAGE;
        for bit in 0..CHUNK_PAGES {
            match (chunk * CHUNK_PAGES + bit) % 7 {
                1 => memory[page(bit)].fill(200 + chunk as u8),
                4 => memory[page(bit)].fill(0),
                _ => {}
            }
        }
    }
    memory[5 * CHUNK..].fill(9);
    let image = || {
        let image = tempfile::tempfile_in("/dev/shm").unwrap();
        image.set_len(memory.len() as u64).unwrap();
        image
    };
    let out = tempfile::tempfile().unwrap();
    let parent = difference::Parent::new(layer_of(&below), image()).unwrap();
    let read = |at: u64, page: &mut [u8]| {
        page.copy_from_slice(&memory[at as usize..][..page.len()]);
        Ok(())
    };
    let own = vec![u16::MAX; 6];
    difference::read(&parent, &own, read, out.try_clone().unwrap()).unwrap().finish().unwrap();
    let over = Over::new(Layer::open(out).unwrap()).unwrap();
    let guest = MmapMut::map_anon(memory.len()).unwrap();
    let address = guest.as_ptr() as u64;
    let uffd = UffdBuilder::new().non_blocking(true).create().expect("userfaultfd needs root");
    uffd.register(address as *mut _, memory.len()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let regions = vec![Region { address, length: memory.len() as u64, offset: 0 }];
    let filled = image();
    let mut copier = Copier::new(
        (layer_of(&below), Some(over)),
        filled.try_clone().unwrap(),
        Writer::create(&folder.path().join("stats")).unwrap(),
        Buffers::new().unwrap(),
        (uffd, regions),
    );
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || copier.serve(&[theirs.as_fd()]));
    for page in (0..memory.len() / PAGE).rev().step_by(3) {
        assert_eq!(guest[page * PAGE], memory[page * PAGE], "page {page}");
    }
    assert!(guest[..] == memory[..]);
    ours.write_all(&[0]).unwrap();
    server.join().unwrap().unwrap();
    // The image is the template's: other capsules share it.
    let mut shared = vec![0; 5 * CHUNK];
    filled.read_exact_at(&mut shared, 0).unwrap();
    assert!(shared == below[..5 * CHUNK]);
}
