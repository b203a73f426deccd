//! What VMMs send about their memory: the preload library's message, and Firecracker's.

#![no_main]

use hearth_agent::memory::{copier::handshake, pager::Region};
use libfuzzer_sys::fuzz_target;

const RAM: u64 = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let _ = Region::parse(data, RAM);
    if let Ok(Some(regions)) = handshake::parse(data, RAM) {
        // Whatever is accepted covers guest memory once, in order.
        let mut covered = 0;
        for region in regions {
            assert_eq!(region.offset, covered);
            assert!(region.address.checked_add(region.length).is_some());
            covered += region.length;
        }
        assert_eq!(covered, RAM);
    }
});
