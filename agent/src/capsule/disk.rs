//! A capsule's disk: how large it is, what it takes, and making it larger while the capsule runs.

use super::{
    handle::{Handle, Reply},
    runner::{Life, Runner},
    state::{Denied, Request, State},
};
use crate::{
    disk::size::check_growth,
    error::AgentError,
    guest::{Guest, GuestError},
    steps::step,
    vmm::{control::VmmError, guard::Vmm},
};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Where a capsule's writable layer is now: its VMM's, or its generation's while it is paused.
#[derive(Debug, Default)]
pub struct Place(Mutex<Option<PathBuf>>);

impl Place {
    /// It is there from now on.
    pub fn set(&self, upper: PathBuf) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(upper);
    }

    /// Its size and what it takes on the host, in MiB, the latter rounded up. Zeros while there is none.
    pub fn measure(&self) -> (u64, u64) {
        let path = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        path.and_then(|path| fs::metadata(path).ok())
            .map_or((0, 0), |meta| (meta.size() >> 20, (meta.blocks() * 512).div_ceil(1 << 20)))
    }
}

/// Why a disk did not grow. The capsule runs on; its disk may be larger than its file system, until it is asked again.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The VMM did not.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The guest's file system did not.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Its size cannot be told.
    #[error("the writable layer: {0}")]
    File(#[from] io::Error),
}

impl From<GrowError> for AgentError {
    fn from(error: GrowError) -> Self {
        match error {
            GrowError::Vmm(error) => error.into(),
            GrowError::Guest(error) => error.into(),
            GrowError::File(source) => {
                crate::vmm::launch::LaunchError::Host { what: "the writable layer", source }.into()
            }
        }
    }
}

/// Makes the disk at least `wanted_mb` large; 0 asks for nothing.
pub(crate) async fn ensure(vmm: &Vmm, guest: &Guest, wanted_mb: u64) -> Result<(), GrowError> {
    if wanted_mb == 0 || wanted_mb << 20 <= vmm.disk_bytes()? {
        return Ok(());
    }
    grow(vmm, guest, wanted_mb).await
}

async fn grow(vmm: &Vmm, guest: &Guest, wanted_mb: u64) -> Result<(), GrowError> {
    let start = Instant::now();
    vmm.grow_disk(wanted_mb << 20).await?;
    guest.grow_disk(wanted_mb << 20).await?;
    step("grow_disk", start);
    Ok(())
}

impl Runner {
    /// Grows the disk of a running capsule, which keeps that size for life.
    pub(super) async fn grow_disk(&mut self, life: &Life, wanted_mb: u64, reply: Reply<()>) {
        // The caller may have gone.
        let _ = reply.send(self.try_grow(life, wanted_mb).await);
    }

    async fn try_grow(&mut self, life: &Life, wanted_mb: u64) -> Result<(), AgentError> {
        let state = self.state.borrow().clone();
        if state != State::Running {
            return Err(Denied { state }.into());
        }
        let has = life.vmm.disk_bytes().map_err(GrowError::from)?;
        check_growth(has >> 20, wanted_mb)
            .map_err(|reason| AgentError::Invalid { field: "disk_mb", reason })?;
        // From here the disk has the size, whatever comes of its file system: what is restored from it has it too.
        self.settings.disk_mb = wanted_mb;
        grow(&life.vmm, &life.guest, wanted_mb).await?;
        tracing::info!(wanted_mb, "disk grown");
        Ok(())
    }
}

impl Handle {
    /// Size of its disk in MiB; 0 while it has none.
    pub fn disk_mb(&self) -> u64 {
        self.disk.measure().0
    }

    /// Grows its disk. One that comes back in a moment is waited for; refused unless it runs.
    pub async fn grow_disk(&self, wanted_mb: u64) -> Result<(), AgentError> {
        self.settled(Request::Use).await?;
        self.ask(|reply| super::handle::Message::GrowDisk(wanted_mb, reply)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_disk_has_a_size_and_takes_little() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::default();
        assert_eq!(place.measure(), (0, 0));
        let path = folder.path().join("upper.img");
        fs::File::create(&path).unwrap().set_len(2 << 30).unwrap();
        std::os::unix::fs::FileExt::write_all_at(
            &fs::File::options().write(true).open(&path).unwrap(),
            b"x",
            0,
        )
        .unwrap();
        place.set(path.clone());
        assert_eq!(place.measure(), (2048, 1));
        fs::remove_file(path).unwrap();
        assert_eq!(place.measure(), (0, 0));
    }
}
