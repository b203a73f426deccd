//! A run request, checked. Pure.

use crate::error::RuntimeError;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hearth_proto::wire::run::{FileInput, RunRequest};
use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
    time::Duration,
};

const CODE_BYTES_MAX: usize = 1 << 20;
const TIMEOUT_MS_MAX: u64 = 3_600_000;
const OUTPUT_BYTES_DEFAULT: usize = 1 << 20;
/// More than this is not kept per stream, whatever is asked for: it is held in memory.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;
const ENV_COUNT_MAX: usize = 256;
const ENV_BYTES_MAX: usize = 256 << 10;
const STDIN_BYTES_MAX: usize = 16 << 20;
const FILES_MAX: usize = 256;
const FILES_BYTES_MAX: usize = 64 << 20;
const PATH_BYTES_MAX: usize = 4095;

/// A request that may be run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: String,
    pub(crate) env: HashMap<String, String>,
    pub(crate) cwd: Option<String>,
    /// Base64, as it goes to the kernel.
    pub(crate) stdin: Option<String>,
    pub(crate) timeout: Duration,
    pub(crate) max_output_bytes: usize,
    pub(crate) files: Vec<File>,
    pub(crate) artifacts: bool,
    /// The language's own cells run instead of `code`, without a trace that user code can see.
    pub(crate) rehearsal: bool,
}

/// A file to write before the run.
#[derive(Debug)]
pub(crate) struct File {
    /// Absolute, or relative to the run's directory without `..`.
    pub(crate) path: PathBuf,
    pub(crate) content: Vec<u8>,
}

impl TryFrom<RunRequest> for Run {
    type Error = RuntimeError;

    fn try_from(request: RunRequest) -> Result<Self, RuntimeError> {
        if request.code.len() > CODE_BYTES_MAX {
            return Err(RuntimeError::invalid("code", "longer than 1 MiB"));
        }
        if !(1..=TIMEOUT_MS_MAX).contains(&request.timeout_ms) {
            return Err(RuntimeError::invalid("timeout_ms", "not between 1 and 3600000"));
        }
        check_env(&request.env)?;
        if !request.cwd.is_empty() {
            check_path("cwd", &request.cwd)?;
            if !request.cwd.starts_with('/') {
                return Err(RuntimeError::invalid("cwd", "not an absolute path"));
            }
        }
        if request.stdin.as_ref().is_some_and(|stdin| stdin.len() > STDIN_BYTES_MAX) {
            return Err(RuntimeError::invalid("stdin", "longer than 16 MiB"));
        }
        let max_output_bytes = match request.max_output_bytes {
            0 => OUTPUT_BYTES_DEFAULT,
            bytes => usize::try_from(bytes.min(OUTPUT_BYTES_MAX)).unwrap_or(OUTPUT_BYTES_DEFAULT),
        };
        Ok(Self {
            code: request.code,
            env: request.env,
            cwd: (!request.cwd.is_empty()).then_some(request.cwd),
            stdin: request.stdin.map(|stdin| BASE64.encode(stdin)),
            timeout: Duration::from_millis(request.timeout_ms),
            max_output_bytes,
            files: files(request.files)?,
            artifacts: request.artifacts,
            rehearsal: request.rehearsal,
        })
    }
}

/// Checks names and values of environment variables.
fn check_env(env: &HashMap<String, String>) -> Result<(), RuntimeError> {
    if env.len() > ENV_COUNT_MAX {
        return Err(RuntimeError::invalid("env", "more than 256 variables"));
    }
    if env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > ENV_BYTES_MAX {
        return Err(RuntimeError::invalid("env", "longer than 256 KiB"));
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(RuntimeError::invalid("env", format!("{name:?} is not a variable's name")));
        }
        if value.contains('\0') {
            return Err(RuntimeError::invalid(format!("env.{name}"), "contains a NUL character"));
        }
    }
    Ok(())
}

fn check_path(field: &str, path: &str) -> Result<(), RuntimeError> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(RuntimeError::invalid(field, "not a path"));
    }
    Ok(())
}

fn files(files: Vec<FileInput>) -> Result<Vec<File>, RuntimeError> {
    if files.len() > FILES_MAX {
        return Err(RuntimeError::invalid("files", "more than 256 files"));
    }
    if files.iter().map(|file| file.content.len()).sum::<usize>() > FILES_BYTES_MAX {
        return Err(RuntimeError::invalid("files", "more than 64 MiB"));
    }
    let check = |(index, file): (usize, FileInput)| {
        let field = format!("files[{index}].path");
        check_path(&field, &file.path)?;
        let path = Path::new(&file.path);
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(RuntimeError::invalid(field, "contains `..`"));
        }
        if path.file_name().is_none() || file.path.ends_with('/') {
            return Err(RuntimeError::invalid(field, "not the path of a file"));
        }
        Ok(File { path: path.to_owned(), content: file.content })
    };
    files.into_iter().enumerate().map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> RunRequest {
        RunRequest { code: "1".into(), timeout_ms: 1000, ..RunRequest::default() }
    }

    fn field(request: RunRequest) -> Option<String> {
        match Run::try_from(request) {
            Err(RuntimeError::Invalid { field, .. }) => Some(field),
            Err(error) => panic!("{error}"),
            Ok(_) => None,
        }
    }

    fn file(path: &str) -> Vec<FileInput> {
        vec![FileInput { path: path.into(), content: vec![] }]
    }

    #[test]
    fn a_plain_request_gets_the_defaults() {
        let run = Run::try_from(request()).unwrap();
        assert_eq!(run.max_output_bytes, 1 << 20);
        assert_eq!((run.cwd, run.stdin, run.artifacts), (None, None, false));
    }

    #[test]
    fn the_wrong_field_is_named() {
        assert_eq!(field(RunRequest { timeout_ms: 0, ..request() }).as_deref(), Some("timeout_ms"));
        assert_eq!(field(RunRequest { timeout_ms: 3_600_001, ..request() }).as_deref(), Some("timeout_ms"));
        assert_eq!(field(RunRequest { code: "x".repeat(1 << 21), ..request() }).as_deref(), Some("code"));
        assert_eq!(field(RunRequest { cwd: "tmp".into(), ..request() }).as_deref(), Some("cwd"));
        let env = HashMap::from([("A=B".into(), String::new())]);
        assert_eq!(field(RunRequest { env, ..request() }).as_deref(), Some("env"));
        let env = HashMap::from([("A".into(), "\0".into())]);
        assert_eq!(field(RunRequest { env, ..request() }).as_deref(), Some("env.A"));
        for path in ["", "../x", "a/../../x", "/", "a/", "a\0b"] {
            let fault = field(RunRequest { files: file(path), ..request() });
            assert_eq!(fault.as_deref(), Some("files[0].path"), "{path:?}");
        }
        assert_eq!(field(RunRequest { files: file("a/b.txt"), ..request() }), None);
        assert_eq!(field(RunRequest { files: file("/tmp/b.txt"), ..request() }), None);
    }
}
