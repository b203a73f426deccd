//! `Activate` on the wire: checked before anything is changed.

use crate::snapshot::{
    activate::{Activation, StepTimes},
    entropy,
    identity::Identity,
};
use hearth_proto::wire::envd::{ActivateReply, ActivateRequest};
use tonic::Status;

/// A token this short could be guessed.
const TOKEN_BYTES_MIN: usize = 16;

/// A request whose every field can be used.
pub struct Checked {
    /// What the steps need.
    pub activation: Activation,
    /// What later calls must carry.
    pub token: String,
}

/// Checks the request; a refused one leaves the capsule as it was.
pub fn check(request: ActivateRequest) -> Result<Checked, Status> {
    if !(entropy::BYTES_MIN..=entropy::BYTES_MAX).contains(&request.entropy.len()) {
        return Err(Status::invalid_argument("entropy: 32 to 512 bytes"));
    }
    if request.realtime_ns <= 0 {
        return Err(Status::invalid_argument("realtime_ns: must be after 1970"));
    }
    // Metadata carries visible ASCII only, so another token could never be shown again.
    if request.token.len() < TOKEN_BYTES_MIN || !request.token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Status::invalid_argument("token: at least 16 visible ASCII characters"));
    }
    crate::process::environment::check(request.env.iter())
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let identity = Identity::new(request.hostname, request.machine_id)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let activation =
        Activation { entropy: request.entropy, realtime_ns: request.realtime_ns, identity, env: request.env };
    Ok(Checked { activation, token: request.token })
}

/// The answer.
pub fn reply(times: StepTimes) -> ActivateReply {
    ActivateReply {
        envd_version: env!("CARGO_PKG_VERSION").to_owned(),
        step_us: times.into_iter().map(|(step, us)| (step.to_owned(), us)).collect(),
    }
}
