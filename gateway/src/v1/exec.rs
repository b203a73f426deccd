//! `POST /v1/capsules/{id}/exec`: a command in the foreground or in the background, in the compatible shape.
//!
//! A process that a signal ended has `exit_code` -1 (the compatible API's number) and, beside it, `signal`. A command
//! that ran too long is an `agent_error`: clients of the compatible API know no other code for it.

use crate::{
    app::App,
    auth::Caller,
    config::Config,
    error::ApiError,
    json::{body::JsonBody, fields::Fields, rules},
    middleware::Scope,
    ops::{
        guest::Place,
        processes::{self, Background, Command, Finished},
    },
    v1::CapsulePath,
};
use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hearth_proto::{id::CapsuleId, wire::process::StartReply};
use http::StatusCode;
use serde::Serialize;
use std::time::{Duration, Instant};

/// As in the compatible API, when none is given or it is not positive.
const TIMEOUT_SEC: u64 = 30;
/// Program and arguments. Linux takes 128 KiB per argument.
const COMMAND_BYTES_MAX: usize = 1 << 20;

/// The body of a 200. A command that failed is one too.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ExecAnswer {
    #[schema(value_type = String)]
    sandbox_id: CapsuleId,
    cmd: String,
    stdout: String,
    stderr: String,
    exit_code: i32,
    duration_ms: u64,
    /// Of both streams: `utf-8`, or `base64` when one of them is no text.
    encoding: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    /// The guest was out of memory and the process was killed for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    oom: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<Truncated>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Truncated {
    stdout: bool,
    stderr: bool,
}

/// The body of a 202.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct StartedAnswer {
    #[schema(value_type = String)]
    sandbox_id: CapsuleId,
    cmd: String,
    pid: u32,
    tag: String,
}

/// Runs a command and waits for its end, or only starts it.
pub(crate) async fn exec(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let mut fields = body.fields()?;
    let background = fields.flag("background")?.unwrap_or(false);
    let tag = rules::tag(&mut fields)?;
    let mut command = read_command(&mut fields)?;
    command.timeout = timeout(&mut fields, &app.config)?;
    let program = command.program.clone();
    if background {
        let keep_stdin = fields.flag("keep_stdin")?.unwrap_or(false);
        let place = Place::of(&app, &scope, caller, capsule).await?;
        let background = Background { command, tag, keep_stdin, terminal: None };
        let StartReply { pid, tag } = processes::start(&app, &place, background).await?;
        let answer = StartedAnswer { sandbox_id: capsule, cmd: program, pid, tag };
        return Ok((StatusCode::ACCEPTED, Json(answer)).into_response());
    }
    let started = Instant::now();
    let finished = processes::exec(&app, &scope, caller, capsule, command).await?;
    Ok(Json(answer(capsule, program, finished, started.elapsed())).into_response())
}

/// The fields of a command, wherever it is to run. Its time limit is not among them.
pub(crate) fn read_command(fields: &mut Fields) -> Result<Command, ApiError> {
    let program = fields.required_text("cmd")?;
    if program.is_empty() || program.contains('\0') {
        return Err(fields.fault("cmd", "must not be empty or contain NUL"));
    }
    let args = fields.texts("args")?.unwrap_or_default();
    if let Some(index) = args.iter().position(|arg| arg.contains('\0')) {
        return Err(fields.fault(&format!("args[{index}]"), "must not contain NUL"));
    }
    let bytes: usize = program.len() + args.iter().map(|arg| arg.len() + 1).sum::<usize>();
    if bytes > COMMAND_BYTES_MAX {
        return Err(fields.fault("args", format!("the command is over {COMMAND_BYTES_MAX} bytes")));
    }
    let mut env = rules::env(fields, "envs")?;
    env.extend(rules::env(fields, "env")?);
    Ok(Command {
        program,
        args,
        env,
        cwd: rules::path(fields, "cwd")?,
        user: rules::user(fields)?,
        stdin: fields.text("stdin")?,
        timeout: Duration::ZERO,
    })
}

fn timeout(fields: &mut Fields, config: &Config) -> Result<Duration, ApiError> {
    let max = config.max_timeout_ms / 1_000;
    let seconds = match fields.integer("timeout_sec")?.map(u64::try_from) {
        None | Some(Err(_) | Ok(0)) => TIMEOUT_SEC.min(max),
        Some(Ok(seconds)) if seconds <= max => seconds,
        Some(Ok(seconds)) => {
            return Err(fields.fault("timeout_sec", format!("must be at most {max}, got {seconds}")));
        }
    };
    Ok(Duration::from_secs(seconds))
}

fn answer(capsule: CapsuleId, cmd: String, finished: Finished, took: Duration) -> ExecAnswer {
    let Finished { stdout, stderr, exited, stdout_cut, stderr_cut } = finished;
    let Texts { stdout, stderr, encoding } = Texts::of(stdout, stderr);
    let (exit_code, signal) = processes::ending(&exited);
    ExecAnswer {
        sandbox_id: capsule,
        cmd,
        stdout,
        stderr,
        exit_code,
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        encoding,
        signal,
        oom: exited.oom.then_some(true),
        truncated: (stdout_cut || stderr_cut).then_some(Truncated { stdout: stdout_cut, stderr: stderr_cut }),
    }
}

/// Two streams of output as JSON can hold them: text, or both in base64 when one of them is no text.
pub(crate) struct Texts {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) encoding: &'static str,
}

impl Texts {
    pub(crate) fn of(stdout: Vec<u8>, stderr: Vec<u8>) -> Self {
        match (String::from_utf8(stdout), String::from_utf8(stderr)) {
            (Ok(stdout), Ok(stderr)) => Self { stdout, stderr, encoding: "utf-8" },
            (stdout, stderr) => Self { stdout: base64(stdout), stderr: base64(stderr), encoding: "base64" },
        }
    }
}

fn base64(text: Result<String, std::string::FromUtf8Error>) -> String {
    match text {
        Ok(text) => STANDARD.encode(text),
        Err(error) => STANDARD.encode(error.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_proto::wire::process::Exited;

    fn finished(stdout: &[u8], exited: Exited) -> Finished {
        let stderr = b"err".to_vec();
        Finished { stdout: stdout.to_vec(), stderr, exited, stdout_cut: false, stderr_cut: false }
    }

    fn answered(finished: Finished) -> serde_json::Value {
        let capsule = CapsuleId::from_uuid(uuid::Uuid::nil());
        serde_json::to_value(answer(capsule, "sh".to_owned(), finished, Duration::from_millis(7)))
            .expect("JSON")
    }

    #[test]
    fn the_answer_has_the_compatible_shape() {
        let expected = serde_json::json!({
            "sandbox_id": "cl-0000000000000000000000000", "cmd": "sh", "stdout": "hi\n", "stderr": "err",
            "exit_code": 3, "duration_ms": 7, "encoding": "utf-8",
        });
        assert_eq!(answered(finished(b"hi\n", Exited { exit_code: 3, ..Exited::default() })), expected);
    }

    #[test]
    fn one_stream_that_is_no_text_makes_both_base64() {
        let body = answered(finished(b"\xff", Exited::default()));
        assert_eq!(
            (&body["stdout"], &body["stderr"], &body["encoding"]),
            (&"/w==".into(), &"ZXJy".into(), &"base64".into())
        );
    }

    #[test]
    fn a_signal_is_minus_one_with_its_number_beside() {
        let body =
            answered(finished(b"", Exited { exit_code: 137, signal: 9, oom: true, ..Exited::default() }));
        assert_eq!(
            (&body["exit_code"], &body["signal"], &body["oom"]),
            (&(-1).into(), &9.into(), &true.into())
        );
    }
}
