//! The gateway with a real Postgres and no pool-manager: everything that needs no capsule.

#[path = "service/postgres.rs"]
mod postgres;
#[path = "service/testbed.rs"]
mod testbed;

#[path = "service/connections.rs"]
mod connections;
#[path = "service/errors.rs"]
mod errors;
#[path = "service/extension.rs"]
mod extension;
#[path = "service/keys.rs"]
mod keys;
#[path = "service/readiness.rs"]
mod readiness;
#[path = "service/validation.rs"]
mod validation;
