//! How a Firecracker hands over its memory: during the load call it connects to our socket and sends one JSON array,
//! an object per region, with the userfaultfd attached (Firecracker's
//! docs/snapshotting/handling-page-faults-on-snapshot-resume.md). The connection stays open for its life.

use super::super::{
    CHUNK, PAGE,
    pager::{PagerError, receive, system, userfaultfd},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt::PeerCredentials},
};
use serde::Deserialize;
use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
};
use userfaultfd::Uffd;

/// Longest message: some hundred regions.
const BYTES_MAX: usize = 64 << 10;
/// Most regions: two below 1 TiB, more with hot-plugged memory.
const REGIONS_MAX: usize = 64;
/// A message follows its connection at once.
const MESSAGE_MS: u16 = 10_000;

/// A part of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where it is in the VMM.
    pub address: u64,
    /// Its bytes.
    pub length: u64,
    /// Where it begins in guest memory as the layer counts it.
    pub offset: u64,
}

/// As Firecracker spells it; fields that it adds are ignored.
#[derive(Debug, Deserialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
}

/// Waits for the Firecracker with `pid`, and takes its memory over. `None` when it ended first.
pub fn accept(
    listener: &UnixListener,
    pid: i32,
    end: BorrowedFd<'_>,
    ram_bytes: u64,
) -> Result<Option<(Uffd, Vec<Region>, UnixStream)>, PagerError> {
    let stream = loop {
        if !wait(listener.as_fd(), end, PollTimeout::NONE)? {
            return Ok(None);
        }
        let (stream, _) =
            listener.accept().map_err(|source| PagerError::System { what: "accept", source })?;
        let peer = getsockopt(&stream, PeerCredentials).map_err(system("the peer's credentials"))?;
        // Nobody else can reach the socket; a process that does is not answered.
        if peer.pid() == pid {
            break stream;
        }
    };
    let (mut bytes, mut fds) = (Vec::new(), Vec::new());
    loop {
        if !wait(stream.as_fd(), end, PollTimeout::from(MESSAGE_MS))? {
            return Ok(None);
        }
        let mut part = [0; 4096];
        let (count, received) = receive(&stream, &mut part)?;
        fds.extend(received);
        if count == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&part[..count]);
        if let Some(regions) = parse(&bytes, ram_bytes)? {
            return Ok(Some((userfaultfd(fds)?, regions, stream)));
        }
    }
}

/// (pure) The regions that a message names, which have to be `ram_bytes` of memory. `None` when more of it is to come.
pub fn parse(bytes: &[u8], ram_bytes: u64) -> Result<Option<Vec<Region>>, PagerError> {
    match serde_json::from_slice::<Vec<Mapping>>(bytes) {
        Ok(mappings) => match check(&mappings, ram_bytes) {
            Ok(regions) => Ok(Some(regions)),
            Err(reason) => Err(PagerError::Handshake(reason.to_owned())),
        },
        Err(error) if error.is_eof() && bytes.len() < BYTES_MAX => Ok(None),
        Err(error) => Err(PagerError::Handshake(format!("not Firecracker's message: {error}"))),
    }
}

/// Waits until `fd` is readable. False when the VMM ended first.
fn wait(fd: BorrowedFd<'_>, end: BorrowedFd<'_>, timeout: PollTimeout) -> Result<bool, PagerError> {
    loop {
        let mut waits = [PollFd::new(fd, PollFlags::POLLIN), PollFd::new(end, PollFlags::POLLIN)];
        match poll(&mut waits, timeout) {
            Ok(0) => {
                let source = io::Error::from(io::ErrorKind::TimedOut);
                return Err(PagerError::System { what: "Firecracker's message", source });
            }
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(system("poll")(error)),
        }
        if waits[0].any().unwrap_or(false) {
            return Ok(true);
        }
        if waits[1].any().unwrap_or(false) {
            return Ok(false);
        }
    }
}

/// (pure) Checks that the regions are whole chunks and cover guest memory once, in order.
fn check(mappings: &[Mapping], ram_bytes: u64) -> Result<Vec<Region>, &'static str> {
    if mappings.is_empty() || REGIONS_MAX < mappings.len() {
        return Err("no region, or too many");
    }
    let mut regions: Vec<Region> = Vec::with_capacity(mappings.len());
    let mut covered = 0u64;
    for mapping in mappings {
        let region =
            Region { address: mapping.base_host_virt_addr, length: mapping.size, offset: mapping.offset };
        if mapping.page_size.is_none_or(|bytes| bytes != PAGE as u64) {
            return Err("its page size is not ours");
        }
        let is_whole = region.length > 0
            && region.length.is_multiple_of(CHUNK as u64)
            && region.address.is_multiple_of(PAGE as u64)
            && region.address.checked_add(region.length).is_some();
        if !is_whole {
            return Err("a region is not of whole chunks");
        }
        if region.offset != covered {
            return Err("the regions do not follow each other");
        }
        covered = covered.checked_add(region.length).ok_or("the regions are too large")?;
        let overlaps = |other: &Region| {
            region.address < other.address + other.length && other.address < region.address + region.length
        };
        if regions.iter().any(overlaps) {
            return Err("two regions overlap");
        }
        regions.push(region);
    }
    if covered != ram_bytes {
        return Err("the regions are not the snapshot's memory");
    }
    Ok(regions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK_BYTES: u64 = CHUNK as u64;

    fn mapping(address: u64, chunks: u64, offset: u64) -> Mapping {
        Mapping {
            base_host_virt_addr: address,
            size: chunks * CHUNK_BYTES,
            offset: offset * CHUNK_BYTES,
            page_size: Some(4096),
        }
    }

    #[test]
    fn two_regions_that_cover_memory_are_accepted() {
        let regions = check(&[mapping(1 << 20, 2, 0), mapping(8 << 20, 1, 2)], 3 * CHUNK_BYTES).unwrap();
        assert_eq!(regions[1], Region { address: 8 << 20, length: CHUNK_BYTES, offset: 2 * CHUNK_BYTES });
    }

    #[test]
    fn a_gap_an_overlap_and_another_size_are_refused() {
        let ram = 3 * CHUNK_BYTES;
        for (mappings, reason) in [
            (vec![], "no region"),
            (vec![mapping(1 << 20, 3, 1)], "follow"),
            (vec![mapping(1 << 20, 2, 0)], "not the snapshot's"),
            (vec![mapping(1 << 20, 2, 0), mapping(1 << 20, 1, 2)], "overlap"),
            (vec![mapping(u64::MAX - 4095, 3, 0)], "whole"),
            (vec![Mapping { page_size: Some(2 << 20), ..mapping(1 << 20, 3, 0) }], "page size"),
            (vec![Mapping { page_size: None, ..mapping(1 << 20, 3, 0) }], "page size"),
        ] {
            assert!(check(&mappings, ram).unwrap_err().contains(reason), "{mappings:?}");
        }
    }

    #[test]
    fn the_message_of_firecracker_1_12_is_read() {
        let text = r#"[{"base_host_virt_addr":140131034234880,"size":536870912,"offset":0,
            "page_size":4096,"page_size_kib":4096}]"#;
        let mappings: Vec<Mapping> = serde_json::from_str(text).unwrap();
        assert_eq!(check(&mappings, 512 << 20).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_covers_memory_once(
            parts in prop::collection::vec((0u64..1 << 50, 0u64..8, 0u64..8, any::<u64>()), 0..4)
        ) {
            let mappings: Vec<Mapping> = parts
                .iter()
                .map(|(address, chunks, offset, noise)| Mapping {
                    size: if noise % 5 == 0 { *noise } else { chunks * CHUNK_BYTES },
                    ..mapping(address & !0xfff, 0, *offset)
                })
                .collect();
            if let Ok(regions) = check(&mappings, 4 * CHUNK_BYTES) {
                prop_assert_eq!(regions.iter().map(|region| region.length).sum::<u64>(), 4 * CHUNK_BYTES);
                prop_assert_eq!(regions[0].offset, 0);
            }
        }
    }
}
