//! What a guest writes to its console: the last MiB of it, in a file of that size in its VMM's folder.
//!
//! The VMM writes into a pipe. Its pager, which lives as long, reads the other end into the file, round and round: a
//! guest that floods its console takes no more of the host, and what it wrote last is there after its VMM died, and for
//! a later agent.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{OwnedFd, RawFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    sync::mpsc,
    time::Duration,
};

/// Bytes that are kept.
pub const BYTES_MAX: usize = 1 << 20;
/// The file's name in a VMM's folder.
pub const FILE: &str = "console.ring";
/// Number of the pipe's descriptor in the pager.
pub const PAGER_FD: RawFd = 4;

/// The file begins with the number of bytes that were ever written, a native u64.
const HEAD_BYTES: u64 = 8;
/// What is in the pipe when the VMM has ended is read within microseconds.
const REST_DEADLINE: Duration = Duration::from_millis(500);

/// The file's one writer.
#[derive(Debug)]
pub struct Ring {
    file: File,
    total: u64,
}

impl Ring {
    /// Makes the file (replacing an old one), readable by root only.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { file, total: 0 })
    }

    /// Appends bytes; the oldest go.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let skipped = bytes.len().saturating_sub(BYTES_MAX);
        let at = (self.total + skipped as u64) % BYTES_MAX as u64;
        let (first, second) = bytes[skipped..].split_at((BYTES_MAX - at as usize).min(bytes.len() - skipped));
        self.file.write_all_at(first, HEAD_BYTES + at)?;
        self.file.write_all_at(second, HEAD_BYTES)?;
        self.total += bytes.len() as u64;
        self.file.write_all_at(&self.total.to_ne_bytes(), 0)
    }
}

/// What a ring holds, oldest first; nothing when there is no file. While it is written, a part may be newer than the rest.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(HEAD_BYTES + BYTES_MAX as u64).read_to_end(&mut bytes)?;
    let Some((head, circle)) = bytes.split_first_chunk::<{ HEAD_BYTES as usize }>() else {
        return Ok(Vec::new());
    };
    let total = u64::from_ne_bytes(*head);
    if total <= circle.len() as u64 {
        return Ok(circle[..total as usize].to_vec());
    }
    let (newest, oldest) = circle.split_at((total % BYTES_MAX as u64) as usize % circle.len().max(1));
    Ok([oldest, newest].concat())
}

/// A thread that reads a VMM's console into a ring.
#[derive(Debug)]
pub struct Follower {
    ended: mpsc::Receiver<()>,
}

impl Follower {
    /// Starts it, on the pipe's end that is read.
    pub fn start(pipe: OwnedFd, ring: Ring) -> io::Result<Self> {
        let (end, ended) = mpsc::channel();
        std::thread::Builder::new().name("console".to_owned()).spawn(move || {
            follow(&File::from(pipe), ring);
            drop(end);
        })?;
        Ok(Self { ended })
    }

    /// Waits until all that the VMM wrote is in the ring: until nobody can write any more, but not long.
    pub fn finish(self) {
        // Nothing is ever sent: it ends with the thread.
        let _ = self.ended.recv_timeout(REST_DEADLINE);
    }
}

fn follow(mut pipe: &File, mut ring: Ring) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                // A host without room costs the console, not the guest, which would wait for a full pipe.
                let _ = ring.append(&buffer[..count]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Not of a pipe that is open: then its bytes are lost, as above.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_last_bytes_are_kept_in_order(
            parts in prop::collection::vec((any::<u8>(), 0..(BYTES_MAX + BYTES_MAX / 2)), 0..5)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(FILE);
            let (mut ring, mut all) = (Ring::create(&path).unwrap(), Vec::new());
            for (seed, length) in parts {
                let bytes: Vec<u8> = (0..length).map(|at| seed.wrapping_add((at / 7) as u8)).collect();
                ring.append(&bytes).unwrap();
                all.extend(bytes);
                let expected = &all[all.len().saturating_sub(BYTES_MAX)..];
                prop_assert!(read(&path).unwrap() == expected);
            }
        }
    }

    #[test]
    fn what_a_vmm_wrote_before_its_end_is_there_and_a_missing_file_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(read(&path).unwrap(), b"");
        let (reader, mut writer) = io::pipe().unwrap();
        let follower = Follower::start(reader.into(), Ring::create(&path).unwrap()).unwrap();
        writer.write_all(b"last words").unwrap();
        drop(writer);
        follower.finish();
        assert_eq!(read(&path).unwrap(), b"last words");
    }
}
