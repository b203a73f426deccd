//! `/v1/capsules/{id}/processes`: what was started in a capsule, signals, input, and the output that was kept.

use crate::{
    app::App,
    auth::Caller,
    error::ApiError,
    json::{body::JsonBody, query::Query},
    middleware::Scope,
    ops::{guest::Place, processes},
    v1::{CapsulePath, exec::Texts},
};
use axum::{
    Extension, Json,
    extract::{FromRequestParts, Path, State},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hearth_proto::{
    id::CapsuleId,
    wire::process::{ProcessInfo, Selector, SignalRequest, WriteInputRequest, selector::By},
};
use http::{StatusCode, request::Parts};
use serde::Serialize;

const SELECTOR_BYTES_MAX: usize = 64;
/// The guest takes no more in one message.
const INPUT_BYTES_MAX: usize = 1 << 20;

/// Capsule and process in the path. Digits are a pid, anything else is a tag.
pub(crate) struct SelectorPath {
    pub(crate) capsule: CapsuleId,
    pub(crate) process: Selector,
}

impl<S: Send + Sync> FromRequestParts<S> for SelectorPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (capsule, text) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map(|Path(both)| both)
            .map_err(|_| ApiError::invalid("the path is not valid"))?;
        let capsule = capsule.parse().map_err(|error| ApiError::invalid(format!("id: {error}")))?;
        Ok(Self { capsule, process: selector(&text)? })
    }
}

fn selector(text: &str) -> Result<Selector, ApiError> {
    let by = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        By::Pid(text.parse().map_err(|_| ApiError::invalid("selector: not a process id"))?)
    } else if (1..=SELECTOR_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    {
        By::Tag(text.to_owned())
    } else {
        return Err(ApiError::invalid("selector: must be a process id or a tag"));
    };
    Ok(Selector { by: Some(by) })
}

/// One process.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ProcessBody {
    pid: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    tag: String,
    cmd: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    user: String,
    cwd: String,
    /// It has a terminal.
    terminal: bool,
    /// Guest's clock, milliseconds since the epoch.
    started_at_ms: i64,
    /// Of one that has ended; -1 when a signal did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
}

impl From<ProcessInfo> for ProcessBody {
    fn from(info: ProcessInfo) -> Self {
        let ended = info.exited.as_ref().map(processes::ending);
        Self {
            pid: info.pid,
            tag: info.tag,
            cmd: info.cmd,
            args: info.args,
            user: info.user,
            cwd: info.cwd,
            terminal: info.terminal,
            started_at_ms: info.started_at_ms,
            exit_code: ended.map(|(exit_code, _)| exit_code),
            signal: ended.and_then(|(_, signal)| signal),
        }
    }
}

/// Processes of a capsule.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ProcessList {
    processes: Vec<ProcessBody>,
}

/// Processes that Hearth started and that run; with `?ended=true` also those that ended lately.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    mut query: Query,
) -> Result<Json<ProcessList>, ApiError> {
    let ended = query.flag("ended")?.unwrap_or(false);
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let processes = place.guest(&app).processes(ended).await?;
    Ok(Json(ProcessList { processes: processes.into_iter().map(ProcessBody::from).collect() }))
}

/// Sends a signal to a process and all that it started; SIGKILL when none is named.
pub(crate) async fn signal(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    SelectorPath { capsule, process }: SelectorPath,
    mut query: Query,
) -> Result<StatusCode, ApiError> {
    let signal = match query.text("signal") {
        None => processes::SIGKILL,
        Some(name) => {
            processes::signal_number(&name).ok_or_else(|| query.fault("signal", processes::SIGNAL_FAULT))?
        }
    };
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let request = SignalRequest { process: Some(process), signal };
    place.guest(&app).signal(request).await.map_err(processes::unknown_process)?;
    Ok(StatusCode::NO_CONTENT)
}

/// What was kept of a process's output.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct LogsAnswer {
    #[serde(flatten)]
    process: ProcessBody,
    stdout: String,
    stderr: String,
    /// Of both streams: `utf-8`, or `base64` when one of them is no text.
    encoding: &'static str,
    /// The beginning is no longer there.
    truncated: bool,
}

/// The output of a process that was kept, oldest first.
pub(crate) async fn logs(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    SelectorPath { capsule, process }: SelectorPath,
) -> Result<Json<LogsAnswer>, ApiError> {
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let logs = processes::logs(&app, &place, process).await?;
    let Texts { stdout, stderr, encoding } = Texts::of(logs.stdout, logs.stderr);
    let exited = logs.exited.or(logs.process.exited.clone());
    let process = ProcessBody::from(ProcessInfo { exited, ..logs.process });
    Ok(Json(LogsAnswer { process, stdout, stderr, encoding, truncated: logs.truncated }))
}

/// Writes to a process's standard input or terminal.
pub(crate) async fn stdin(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    SelectorPath { capsule, process }: SelectorPath,
    body: JsonBody,
) -> Result<StatusCode, ApiError> {
    let mut fields = body.fields()?;
    let data = match (fields.text("data")?, fields.text("data_base64")?) {
        (Some(_), Some(_)) => return Err(fields.fault("data_base64", "not together with data")),
        (Some(text), None) => text.into_bytes(),
        (None, Some(coded)) => {
            STANDARD.decode(coded).map_err(|_| fields.fault("data_base64", "not valid base64"))?
        }
        (None, None) => Vec::new(),
    };
    let close = fields.flag("close")?.unwrap_or(false);
    if data.is_empty() && !close {
        return Err(ApiError::invalid("data: required, unless close is true"));
    }
    if data.len() > INPUT_BYTES_MAX {
        return Err(fields.fault("data", format!("over {INPUT_BYTES_MAX} bytes; send it in parts")));
    }
    let place = Place::of(&app, &scope, caller, capsule).await?;
    let request = WriteInputRequest { process: Some(process), data, close };
    place.guest(&app).write(request).await.map_err(processes::unknown_process)?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_pid_and_anything_else_is_a_tag() {
        assert_eq!(selector("71").expect("a pid").by, Some(By::Pid(71)));
        assert_eq!(selector("proc-1a2b3c4d").expect("a tag").by, Some(By::Tag("proc-1a2b3c4d".to_owned())));
        for wrong in ["", "4294967296", "a b", "a/b", &"x".repeat(65)] {
            assert!(selector(wrong).is_err(), "{wrong}");
        }
    }
}
