//! Commands in a running capsule: in the foreground, in the background, and what became of them.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    middleware::Scope,
    ops::{
        capsules::unknown_capsule,
        collect::Bounded,
        guest::Place,
        run::{OVERTIME, is_gone},
    },
    upstream::{UpstreamError, stream::Events},
};
use hearth_proto::{
    error::ErrorCode,
    id::CapsuleId,
    wire::{
        agent::ExecCall,
        process::{
            AttachEvent, AttachRequest, Attached, ExecRequest, Exited, ProcessInfo, Selector, StartReply,
            StartRequest, Terminal, attach_event, exec_event,
        },
    },
};
use std::{collections::HashMap, time::Duration};

/// Output kept per stream; the guest keeps head and tail of more.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;
/// The same with room for the guest's marker of a cut. Only a guest that does not respect the limit meets it.
const KEPT_BYTES_MAX: usize = (8 << 20) + (64 << 10);
/// The guest keeps no more of a background process's output.
const LOG_BYTES_MAX: usize = 8 << 20;
const LOGS_DEADLINE: Duration = Duration::from_secs(30);
const ATTACH_DEADLINE: Duration = Duration::from_secs(15);

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

/// A checked request to start a process that outlives its request.
#[derive(Debug, Clone)]
pub(crate) struct Background {
    pub(crate) command: Command,
    /// Empty: a new one.
    pub(crate) tag: String,
    /// Standard input stays open for more.
    pub(crate) keep_stdin: bool,
    pub(crate) terminal: Option<Terminal>,
}

/// Starts a process in the background.
pub(crate) async fn start(app: &App, place: &Place, background: Background) -> Result<StartReply, ApiError> {
    let Background { command, tag, keep_stdin, terminal } = background;
    let request = StartRequest {
        // No time limit: it lives until it ends, is signalled, or its capsule ends.
        command: Some(ExecRequest { timeout_ms: 0, max_output_bytes: 0, ..wire(command) }),
        tag,
        terminal,
        keep_stdin,
        keep_bytes: 0,
    };
    place.guest(app).start(request).await.map_err(unknown_process)
}

/// Attaches to a process: what it is, and then its output.
pub(crate) async fn attach(
    app: &App,
    place: &Place,
    process: Selector,
    replay: bool,
) -> Result<(Attached, Events<AttachEvent>), ApiError> {
    open(app, place, AttachRequest { process: Some(process), replay, once: false }).await
}

/// What is kept of a process's output, oldest first, and how it ended if it has.
pub(crate) async fn logs(app: &App, place: &Place, process: Selector) -> Result<Logs, ApiError> {
    let request = AttachRequest { process: Some(process), replay: true, once: true };
    let (attached, mut events) = open(app, place, request).await?;
    let (mut stdout, mut stderr) = (Bounded::new(LOG_BYTES_MAX), Bounded::new(LOG_BYTES_MAX));
    let mut exited = None;
    let collect = async {
        while let Some(event) = events.next().await.map_err(broken)? {
            match event.event {
                Some(attach_event::Event::Stdout(chunk) | attach_event::Event::Terminal(chunk)) => {
                    stdout.push(&chunk);
                }
                Some(attach_event::Event::Stderr(chunk)) => stderr.push(&chunk),
                Some(attach_event::Event::Exited(end)) => exited = Some(end),
                Some(attach_event::Event::Attached(_)) | None => {}
            }
        }
        Ok::<_, ApiError>(())
    };
    let late = || ApiError::timeout("the capsule did not send the process's output in time");
    tokio::time::timeout(LOGS_DEADLINE, collect).await.map_err(|_| late())??;
    let truncated = attached.truncated || stdout.cut || stderr.cut;
    let process = attached.process.unwrap_or_default();
    Ok(Logs { process, stdout: stdout.bytes, stderr: stderr.bytes, truncated, exited })
}

/// What is kept of a process's output.
#[derive(Debug)]
pub(crate) struct Logs {
    pub(crate) process: ProcessInfo,
    /// For a terminal: both streams.
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) truncated: bool,
    pub(crate) exited: Option<Exited>,
}

/// The guest's first answer says which process it is.
async fn open(
    app: &App,
    place: &Place,
    request: AttachRequest,
) -> Result<(Attached, Events<AttachEvent>), ApiError> {
    let mut events = place.guest(app).attach(request).await.map_err(unknown_process)?;
    let first = tokio::time::timeout(ATTACH_DEADLINE, events.next()).await;
    let first = first.map_err(|_| ApiError::timeout("the capsule did not answer in time"))?;
    match first.map_err(unknown_process)?.and_then(|event| event.event) {
        Some(attach_event::Event::Attached(attached)) => Ok((attached, events)),
        Some(_) | None => Err(lost()),
    }
}

/// A guest's refusal about a process, in public words.
pub(crate) fn unknown_process(error: UpstreamError) -> ApiError {
    match error.code() {
        Some(tonic::Code::NotFound) => {
            ApiError::new(ErrorCode::NotFound, "there is no such process in the capsule")
        }
        _ => error.into(),
    }
}

/// Why a stream of output broke.
pub(crate) fn broken(error: UpstreamError) -> ApiError {
    match error.code() {
        Some(tonic::Code::ResourceExhausted) => {
            ApiError::new(ErrorCode::AgentError, "the output was not read in time; attach again for the rest")
        }
        _ => interrupted(error),
    }
}

/// (pure) How a process ended, as the compatible API tells it: its exit status, or -1 and beside it the signal.
pub(crate) fn ending(exited: &Exited) -> (i32, Option<i32>) {
    if exited.signal == 0 { (exited.exit_code, None) } else { (-1, Some(exited.signal)) }
}

/// Linux's number of SIGKILL.
pub(crate) const SIGKILL: i32 = 9;
/// What is wrong with a signal that is none.
pub(crate) const SIGNAL_FAULT: &str = "must be a signal such as SIGTERM, SIGKILL, SIGINT or SIGHUP";

/// (pure) The number of a signal that a process can be sent (signal(7), x86-64), by name with or without `SIG`.
pub(crate) fn signal_number(name: &str) -> Option<i32> {
    Some(match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ABRT" => 6,
        "KILL" => SIGKILL,
        "USR1" => 10,
        "USR2" => 12,
        "ALRM" => 14,
        "TERM" => 15,
        "CONT" => 18,
        "STOP" => 19,
        "TSTP" => 20,
        "WINCH" => 28,
        _ => return None,
    })
}

/// Runs a command in a running capsule of the caller. Dropping the future kills its processes.
pub(crate) async fn exec(
    app: &App,
    scope: &Scope,
    caller: Caller,
    capsule: CapsuleId,
    command: Command,
) -> Result<Finished, ApiError> {
    let Place { host, .. } = Place::of(app, scope, caller, capsule).await?;
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
