//! Measures a Hearth that it starts itself, on loopback only.
//!
//! Reading order: [`bench`] is one command and the order of its measurements, [`lifecycle`] the other; [`service`] is the
//! `hearth up` that is measured; [`client`], [`control`] and [`capsules`] talk to it; [`paths`] are the measured ways to
//! an answer, [`floor`] what they are compared with, [`slots`] network slots; [`stats`], [`prometheus`] and [`aims`] are pure; [`report`] is the
//! table and `bench.json`.

#![forbid(unsafe_code)]

pub mod aims;
pub mod bench;
pub mod capsules;
pub mod client;
pub mod control;
pub mod floor;
pub mod lifecycle;
pub mod paths;
pub mod progress;
pub mod prometheus;
pub mod report;
pub mod service;
pub mod slots;
pub mod stats;
