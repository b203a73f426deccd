//! The body of a request to run code, checked.

use crate::{
    config::Config,
    error::ApiError,
    json::{
        fields::{Fields, shown},
        rules,
    },
    ops::{
        one_shot::Wish,
        run::{File, Run},
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hearth_proto::error::ErrorCode;
use std::time::Duration;

const TIMEOUT_MS: u64 = 30_000;
const OUTPUT_BYTES: u64 = 1 << 20;
const STDIN_BYTES_MAX: usize = 1 << 20;
/// As many as the guest takes.
const FILES_MAX: usize = 256;
/// More than any host has.
const MEMORY_MB_MAX: u64 = 16 << 20;
/// Fields that choose a fresh capsule. In one that is there they would be ignored, which is not what was asked for.
const OF_THE_CAPSULE: [&str; 3] = ["template", "memory_mb", "session"];
/// What runs today.
const AVAILABLE: &str = "python";
/// Languages of the API whose kernels are not made yet.
const PLANNED: [&str; 4] = ["javascript", "typescript", "bash", "r"];

/// Reads a run and, for a fresh capsule, what to take it of.
pub(crate) fn one_shot(fields: &mut Fields, config: &Config) -> Result<(Wish, Run), ApiError> {
    if fields.any("session").is_some() {
        return Err(
            fields.fault("session", "sessions are not available yet; create a capsule and run code in it")
        );
    }
    // The same words as in a capsule of the caller, where a context can be named one day.
    context(fields)?;
    rules::no_network(fields)?;
    let wish = Wish {
        template: rules::template(fields)?,
        memory_mb: fields.number("memory_mb", 1, MEMORY_MB_MAX)?.unwrap_or(0),
    };
    Ok((wish, run(fields, config)?))
}

/// Reads a run for the default context of a running capsule.
pub(crate) fn in_capsule(fields: &mut Fields, config: &Config) -> Result<Run, ApiError> {
    context(fields)?;
    rules::no_network(fields)?;
    for name in OF_THE_CAPSULE {
        if fields.any(name).is_some() {
            return Err(fields.fault(name, "decided when the capsule was created; leave it out"));
        }
    }
    run(fields, config)
}

fn context(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.text("context_id")?.is_some_and(|id| !id.is_empty()) {
        return Err(fields.fault("context_id", "only the default context is available yet; leave it out"));
    }
    Ok(())
}

fn run(fields: &mut Fields, config: &Config) -> Result<Run, ApiError> {
    let code = fields.required_text("code")?;
    if code.len() > config.max_code_bytes {
        return Err(too_large(format!("code: over {} bytes", config.max_code_bytes)));
    }
    let cwd = rules::path(fields, "cwd")?;
    if !cwd.is_empty() && !cwd.starts_with('/') {
        return Err(fields.fault("cwd", "must be an absolute path"));
    }
    let stdin = fields.text("stdin")?;
    if stdin.as_ref().is_some_and(|stdin| stdin.len() > STDIN_BYTES_MAX) {
        return Err(too_large(format!("stdin: over {STDIN_BYTES_MAX} bytes")));
    }
    let timeout_ms = fields.number("timeout_ms", 1, config.max_timeout_ms)?;
    Ok(Run {
        code,
        language: language(fields)?,
        env: rules::env(fields, "env")?,
        cwd,
        stdin,
        timeout: Duration::from_millis(timeout_ms.unwrap_or(TIMEOUT_MS.min(config.max_timeout_ms))),
        max_output_bytes: fields
            .number("max_output_bytes", 1, config.max_output_bytes)?
            .unwrap_or(OUTPUT_BYTES.min(config.max_output_bytes)),
        files: files(fields, config.max_files_bytes)?,
        artifacts: fields.flag("artifacts")?.unwrap_or(true),
    })
}

fn language(fields: &mut Fields) -> Result<&'static str, ApiError> {
    match fields.text("language")? {
        None => Ok(AVAILABLE),
        Some(language) if language == AVAILABLE => Ok(AVAILABLE),
        Some(language) => {
            let problem =
                if PLANNED.contains(&language.as_str()) { "is not available yet" } else { "is unknown" };
            Err(fields.fault("language", format!("`{}` {problem}; available: {AVAILABLE}", shown(&language))))
        }
    }
}

fn files(fields: &mut Fields, bytes_max: usize) -> Result<Vec<File>, ApiError> {
    let objects = fields.objects("files")?.unwrap_or_default();
    if objects.len() > FILES_MAX {
        return Err(fields.fault("files", format!("over {FILES_MAX} files")));
    }
    let mut files = Vec::with_capacity(objects.len());
    let mut bytes: usize = 0;
    for mut object in objects {
        let file = file(&mut object)?;
        bytes = bytes.saturating_add(file.content.len()).saturating_add(file.path.len());
        if bytes > bytes_max {
            return Err(too_large(format!("files: over {bytes_max} bytes in all")));
        }
        files.push(file);
    }
    Ok(files)
}

fn file(object: &mut Fields) -> Result<File, ApiError> {
    let path = rules::path(object, "path")?;
    if path.is_empty() {
        return Err(object.fault("path", "required"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(object.fault("path", "must not contain `..`"));
    }
    if path.ends_with('/') || path.ends_with("/.") || path == "." {
        return Err(object.fault("path", "must name a file, not a directory"));
    }
    let content = match (object.text("content")?, object.text("content_base64")?) {
        (Some(content), None) => content.into_bytes(),
        (None, Some(base64)) => {
            STANDARD.decode(base64).map_err(|_| object.fault("content_base64", "not valid base64"))?
        }
        (Some(_), Some(_)) => return Err(object.fault("content", "give content or content_base64, not both")),
        (None, None) => return Err(object.fault("content", "content or content_base64 is required")),
    };
    Ok(File { path, content })
}

fn too_large(message: String) -> ApiError {
    ApiError::new(ErrorCode::TooLarge, message)
}
