//! What the gateway can do, free of any HTTP body or wire format of the public API.

pub(crate) mod capsules;
pub(crate) mod collect;
pub(crate) mod files;
pub(crate) mod guest;
pub(crate) mod keys;
pub(crate) mod lease;
pub(crate) mod one_shot;
pub(crate) mod processes;
pub(crate) mod run;
pub(crate) mod snapshots;
pub(crate) mod stages;
