//! What a caller of the agent can be told.

use crate::{
    capsule::{capture::CaptureError, paused::PausedError, state::Denied},
    disk::base::BaseImageError,
    guest::GuestError,
    memory::image::ImageError,
    snapshot::{generation::GenerationError, store::StoreError},
    template::TemplateError,
    vmm::{control::VmmError, launch::LaunchError},
};

/// Everything a call of the agent can fail with.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No such capsule on this host.
    #[error("capsule not found")]
    CapsuleNotFound,
    /// No such template.
    #[error("template `{0}` not found")]
    TemplateNotFound(String),
    /// The capsule is in a state in which this is not possible.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The request is wrong.
    #[error("{field}: {reason}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The host has no room for another capsule.
    #[error("no capacity on this host: {0}")]
    NoCapacity(String),
    /// Its guest has not answered for a while, so that it cannot be captured.
    #[error("the guest does not answer: it can be destroyed, not paused or copied")]
    Unresponsive,
    /// A VMM could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The VMM did not do as told.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The guest did not do as told.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The capsule could not be captured.
    #[error("the capsule could not be captured: {0}")]
    Capture(#[from] CaptureError),
    /// A generation of a capsule cannot be used.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The record of a paused capsule failed.
    #[error(transparent)]
    Paused(#[from] PausedError),
    /// Something of this id is there already.
    #[error("{0} exists already")]
    Exists(String),
    /// The snapshot store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No memory image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A template could not be built.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A base image cannot be made or used.
    #[error(transparent)]
    BaseImage(#[from] BaseImageError),
    /// A file of the host failed.
    #[error("{what}: {source}")]
    File {
        /// Which.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The capsule ended while this was under way.
    #[error("the capsule ended: {0}")]
    Ended(String),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

impl From<crate::admission::Refusal> for AgentError {
    fn from(refusal: crate::admission::Refusal) -> Self {
        Self::NoCapacity(refusal.to_string())
    }
}
