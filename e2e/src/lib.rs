//! Starts real Hearth processes for tests, and looks for what they leave.

pub mod agent;
pub mod generations;
pub mod guest;
pub mod internet;
pub mod ledger;
pub mod leftovers;
pub mod limits;
pub mod process;
pub mod sdk;
pub mod service;
pub mod swap;
