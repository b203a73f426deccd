//! Hearth's public HTTP API: keys, validation, and the way from a request to a capsule and back.
//!
//! ```text
//! client ──▶ server ──▶ middleware ──▶ auth ──▶ v1 (read, check) ──▶ ops ──▶ upstream ──▶ pool-manager, agents
//! ```
//!
//! `v1` only translates: it reads a request, calls one function of `ops` and shapes the answer. `ops` knows no HTTP
//! body, `upstream` is the only place that speaks gRPC, `store` the only one that speaks SQL. All state beside Postgres
//! is a cache or bounded in memory: keys that were looked up, channels to agents, answers kept by idempotency key.

#![forbid(unsafe_code)]

mod app;
mod audit;
mod auth;
mod config;
mod error;
mod extension;
mod gauges;
mod idempotency;
mod json;
mod middleware;
mod ops;
mod ports;
mod router;
mod server;
mod store;
mod text;
mod upstream;
mod v1;

pub use app::GatewayError;
pub use auth::first_key::FirstKeyError;
pub use config::{Config, DatabaseUrl};
pub use extension::{Extension, Hearth, KeyOwner};
/// The database schema, for embedders that bring it up to date themselves.
pub use hearth_migrations as migrations;
pub use server::{Builder, Gateway, Running};
pub use store::StoreError;
