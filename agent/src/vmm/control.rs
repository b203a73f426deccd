//! Control of a running VMM in no engine's words.

use super::{
    firecracker::{Firecracker, FirecrackerError, api::ApiError},
    guard::Vmm,
    qemu,
    qmp::{Qmp, QmpError},
};

use crate::memory::dumped::Dump;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// A VMM's control connection.
#[derive(Debug)]
pub enum Control {
    /// QMP.
    Qemu(Qmp),
    /// Firecracker's API.
    Firecracker(Firecracker),
}

/// Why a VMM did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// QEMU did not.
    #[error(transparent)]
    Qemu(#[from] QmpError),
    /// Firecracker did not.
    #[error(transparent)]
    Firecracker(#[from] FirecrackerError),
    /// The file of the device state could not be opened.
    #[error("the device state {path}: {source}")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<ApiError> for VmmError {
    fn from(error: ApiError) -> Self {
        Self::Firecracker(error.into())
    }
}

impl VmmError {
    /// Whether the VMM's end of its control connection is closed: it has ended, or is about to.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Qemu(error) => matches!(error, QmpError::Closed),
            Self::Firecracker(error) => matches!(error, FirecrackerError::Api(ApiError::Closed)),
            Self::State { .. } => false,
        }
    }
}

impl Vmm {
    /// Lets the vCPUs run.
    pub async fn resume(&self) -> Result<(), VmmError> {
        match &self.control {
            Control::Qemu(qmp) => Ok(qemu::resume(qmp).await?),
            Control::Firecracker(firecracker) => Ok(firecracker.api.resume().await?),
        }
    }

    /// Stops the vCPUs; returns once they stand still.
    pub async fn pause(&self) -> Result<(), VmmError> {
        match &self.control {
            Control::Qemu(qmp) => Ok(qemu::stop(qmp).await?),
            Control::Firecracker(firecracker) => Ok(firecracker.api.pause().await?),
        }
    }

    /// Loads the device state in the file `state` into a VMM that waits for one; its vCPUs stay stopped.
    pub async fn load(&self, state: &Path) -> Result<(), VmmError> {
        let fail = |source| VmmError::State { path: state.to_owned(), source };
        match &self.control {
            Control::Qemu(qmp) => Ok(qemu::load(qmp, File::open(state).map_err(fail)?).await?),
            Control::Firecracker(firecracker) => Ok(firecracker.load(state).await?),
        }
    }

    /// Saves the device state of a stopped machine into the new file `state`. Afterwards the memory that the VMM was
    /// booted with holds the guest's memory of the same instant.
    pub async fn save(&self, state: &Path) -> Result<(), VmmError> {
        let fail = |source| VmmError::State { path: state.to_owned(), source };
        match &self.control {
            Control::Qemu(qmp) => Ok(qemu::save(qmp, &File::create(state).map_err(fail)?).await?),
            Control::Firecracker(firecracker) => Ok(firecracker.save(state).await?),
        }
    }

    /// Saves the device state of a stopped capsule into the new file `state`, and returns what the VMM wrote of its
    /// memory of the same instant; none from a VMM whose memory can be read as it is, until it runs again.
    pub async fn capture(&self, state: &Path) -> Result<Option<Dump>, VmmError> {
        match &self.control {
            Control::Qemu(_) => self.save(state).await.map(|()| None),
            Control::Firecracker(firecracker) => Ok(Some(firecracker.capture(state).await?)),
        }
    }
}
