//! Commands in a running capsule.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    middleware::Scope,
    ops::{
        capsules::unknown_capsule,
        collect::Bounded,
        run::{OVERTIME, is_gone},
    },
    upstream::UpstreamError,
};
use hearth_proto::{
    error::ErrorCode,
    id::CapsuleId,
    wire::{
        agent::ExecCall,
        process::{ExecRequest, Exited, exec_event},
    },
};
use std::{collections::HashMap, time::Duration};

/// Output kept per stream; the guest keeps head and tail of more.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;
/// The same with room for the guest's marker of a cut. Only a guest that does not respect the limit meets it.
const KEPT_BYTES_MAX: usize = (8 << 20) + (64 << 10);

/// A checked request to run a command to its end.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: HashMap<String, String>,
    /// Empty: the user's home.
    pub(crate) cwd: String,
    /// Empty: root.
    pub(crate) user: String,
    pub(crate) stdin: Option<String>,
    pub(crate) timeout: Duration,
}

/// A command that came to its end.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exited: Exited,
    pub(crate) stdout_cut: bool,
    pub(crate) stderr_cut: bool,
}

/// Runs a command in a running capsule of the caller. Dropping the future kills its processes.
pub(crate) async fn exec(
    app: &App,
    scope: &Scope,
    caller: Caller,
    capsule: CapsuleId,
    command: Command,
) -> Result<Finished, ApiError> {
    let host = app.pool.locate(caller.team, capsule, &scope.request_id).await.map_err(unknown_capsule)?;
    let limit = command.timeout + OVERTIME;
    let timeout_sec = command.timeout.as_secs();
    let call = ExecCall { capsule_id: capsule.to_string(), request: Some(wire(command)) };
    let collect = async {
        let mut events =
            app.agents.exec(&host, call, &scope.request_id, limit).await.map_err(unknown_capsule)?;
        let (mut stdout, mut stderr) = (Bounded::new(KEPT_BYTES_MAX), Bounded::new(KEPT_BYTES_MAX));
        while let Some(event) = events.next().await.map_err(interrupted)? {
            match event.event {
                Some(exec_event::Event::Stdout(chunk)) => stdout.push(&chunk),
                Some(exec_event::Event::Stderr(chunk)) => stderr.push(&chunk),
                Some(exec_event::Event::Exited(exited)) => {
                    return Ok(Finished {
                        stdout_cut: stdout.cut || exited.stdout_truncated,
                        stderr_cut: stderr.cut || exited.stderr_truncated,
                        stdout: stdout.bytes,
                        stderr: stderr.bytes,
                        exited,
                    });
                }
                Some(exec_event::Event::Started(_)) | None => {}
            }
        }
        Err(lost())
    };
    let finished = match tokio::time::timeout(limit, collect).await {
        Ok(finished) => finished?,
        Err(_) => return Err(ApiError::timeout("the command did not end in time and did not obey the kill")),
    };
    settled(finished, timeout_sec)
}

/// (pure) Ends of a command that are no answer: it ran too long, or could not be started for a reason of the request.
fn settled(mut finished: Finished, timeout_sec: u64) -> Result<Finished, ApiError> {
    if finished.exited.timed_out {
        let message =
            format!("the command did not finish within {timeout_sec} s and was killed with its children");
        return Err(ApiError::new(ErrorCode::AgentError, message));
    }
    let fault = std::mem::take(&mut finished.exited.error);
    match finished.exited.exit_code {
        _ if fault.is_empty() => Ok(finished),
        // As a shell would say it.
        126 | 127 => {
            finished.stderr.extend_from_slice(fault.as_bytes());
            finished.stderr.push(b'\n');
            Ok(finished)
        }
        _ => Err(ApiError::from_status(tonic::Status::invalid_argument(fault))),
    }
}

/// A failure of the stream before the command's end.
fn interrupted(error: UpstreamError) -> ApiError {
    match error.code() {
        Some(code) if is_gone(code) || code == tonic::Code::Internal => lost().because(error),
        Some(_) | None => unknown_capsule(error),
    }
}

fn lost() -> ApiError {
    ApiError::new(ErrorCode::AgentError, "the capsule was lost while the command ran")
}

fn wire(command: Command) -> ExecRequest {
    ExecRequest {
        cmd: command.program,
        args: command.args,
        env: command.env,
        cwd: command.cwd,
        user: command.user,
        stdin: command.stdin.map(String::into_bytes),
        timeout_ms: u64::try_from(command.timeout.as_millis()).unwrap_or(u64::MAX),
        max_output_bytes: OUTPUT_BYTES_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(exited: Exited) -> Finished {
        Finished { stdout: Vec::new(), stderr: b"x\n".to_vec(), exited, stdout_cut: false, stderr_cut: false }
    }

    #[test]
    fn a_program_that_is_not_there_reads_as_in_a_shell() {
        let exited = Exited { exit_code: 127, error: "nope: not found".to_owned(), ..Exited::default() };
        let finished = settled(finished(exited), 30).expect("an answer");
        assert_eq!(finished.exited.exit_code, 127);
        assert_eq!(finished.stderr, b"x\nnope: not found\n");
    }

    #[test]
    fn a_command_that_ran_too_long_is_an_error_that_the_sdk_knows() {
        let exited = Exited { exit_code: 137, signal: 9, timed_out: true, ..Exited::default() };
        let error = settled(finished(exited), 30).expect_err("no answer");
        assert_eq!(error.code(), ErrorCode::AgentError);
        assert!(error.to_string().contains("within 30 s"));
    }

    #[test]
    fn another_fault_of_the_start_is_the_callers() {
        let exited =
            Exited { exit_code: -1, error: "cwd: no such directory".to_owned(), ..Exited::default() };
        let error = settled(finished(exited), 30).expect_err("no answer");
        assert_eq!(error.code(), ErrorCode::InvalidRequest);
        assert_eq!(error.to_string(), "cwd: no such directory");
    }
}
