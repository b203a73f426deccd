//! A run's answer in the API's shape.

use crate::{
    middleware::Scope,
    ops::{
        collect::{Collected, Status, Truncated},
        run::{Answer, Source},
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hearth_proto::{
    id::{CapsuleId, RunId},
    wire::run::{Artifact, MimePart, Result as Display, RunError},
};
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// The body of a 200.
#[derive(Debug, Serialize)]
pub(crate) struct RunAnswer {
    id: RunId,
    status: Status,
    stdout: String,
    stderr: String,
    results: Vec<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody>,
    execution_count: u32,
    artifacts: Vec<ArtifactBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<Truncated>,
    capsule: CapsuleBody,
    timings: Timings,
}

#[derive(Debug, Serialize)]
struct ErrorBody {
    name: String,
    value: String,
    traceback: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ArtifactBody {
    path: String,
    size: u64,
    mime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_base64: Option<String>,
}

#[derive(Debug, Serialize)]
struct CapsuleBody {
    id: CapsuleId,
    state: &'static str,
}

/// Milliseconds with three decimals.
#[derive(Debug, Serialize)]
struct Timings {
    total_ms: f64,
    claim_ms: f64,
    /// `null` for a capsule that was the caller's already.
    source: Option<&'static str>,
    run_ms: f64,
}

impl RunAnswer {
    /// Shapes an answer. The total is counted from the arrival of the request.
    pub(crate) fn new(answer: Answer, scope: &Scope) -> Self {
        let Collected {
            status,
            stdout,
            stderr,
            displays,
            error,
            artifacts,
            execution_count,
            fresh_kernel,
            truncated,
            run_us,
        } = answer.collected;
        let own = answer.source == Source::Own;
        // A capsule of the caller's whose context lost its state is told like a new one.
        let kept = own && !fresh_kernel;
        Self {
            id: answer.id,
            status,
            stdout: text(stdout),
            stderr: text(stderr),
            results: displays.into_iter().map(result).collect(),
            error: error.map(|RunError { name, value, traceback }| ErrorBody { name, value, traceback }),
            execution_count,
            artifacts: artifacts.into_iter().map(artifact).collect(),
            truncated: truncated.any().then_some(truncated),
            capsule: CapsuleBody { id: answer.capsule, state: if kept { "reused" } else { "new" } },
            timings: Timings {
                total_ms: millis(scope.started.elapsed()),
                claim_ms: millis(answer.claim),
                source: (!own).then(|| answer.source.as_str()),
                run_ms: millis(Duration::from_micros(run_us)),
            },
        }
    }
}

/// A whole stream as text: invalid bytes become U+FFFD.
pub(crate) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn result(display: Display) -> Map<String, Value> {
    let mut result: Map<String, Value> = display
        .parts
        .into_iter()
        // A MIME type has a slash, so no part can pose as one of the fields beside them.
        .filter(|part| part.mime.contains('/'))
        .map(|MimePart { mime, data }| {
            let value = if is_json(&mime) { json_value(data) } else { Value::String(data) };
            (mime, value)
        })
        .collect();
    result.insert("is_main".to_owned(), Value::Bool(display.is_main));
    result
}

fn is_json(mime: &str) -> bool {
    let essence = mime.split(';').next().unwrap_or(mime).trim_end();
    essence == "application/json" || essence.ends_with("+json")
}

/// Text that is no JSON after all stays text.
fn json_value(data: String) -> Value {
    serde_json::from_str(&data).unwrap_or(Value::String(data))
}

fn artifact(artifact: Artifact) -> ArtifactBody {
    ArtifactBody {
        path: artifact.path,
        size: artifact.size,
        mime: artifact.mime,
        content_base64: artifact.content.map(|content| STANDARD.encode(content)),
    }
}

fn millis(duration: Duration) -> f64 {
    let micros = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
    f64::from(micros) / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_objects_by_mime_type_with_json_as_json() {
        let part = |mime: &str, data: &str| MimePart { mime: mime.to_owned(), data: data.to_owned() };
        let display = Display {
            parts: vec![
                part("text/plain", "2"),
                part("application/vnd.plotly.v1+json", r#"{"a":[1]}"#),
                part("application/json", "not json"),
                part("is_main", "posing"),
            ],
            is_main: true,
        };
        let expected = serde_json::json!({
            "text/plain": "2",
            "application/vnd.plotly.v1+json": { "a": [1] },
            "application/json": "not json",
            "is_main": true,
        });
        assert_eq!(Value::Object(result(display)), expected);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_not_refused() {
        assert_eq!(text(b"a\xffb".to_vec()), "a\u{fffd}b");
        assert_eq!(text("€".as_bytes().to_vec()), "€");
    }

    #[test]
    fn milliseconds_keep_microseconds() {
        assert!((millis(Duration::from_nanos(1_234_567)) - 1.234).abs() < 1e-9);
        assert!(millis(Duration::from_secs(1 << 40)).is_finite());
    }
}
