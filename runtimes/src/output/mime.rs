//! MIME bundles: from Jupyter's JSON to parts. Pure.

use hearth_proto::wire::run::MimePart;
use serde_json::{Map, Value};

/// What a part costs beside its text when a run's displays are counted.
const PART_BYTES: usize = 64;

/// The bundle as parts: text as it is, JSON types as JSON text.
pub(super) fn parts(bundle: Map<String, Value>) -> Vec<MimePart> {
    bundle.into_iter().map(|(mime, value)| MimePart { data: text(&mime, value), mime }).collect()
}

/// What the parts count for.
pub(super) fn size(parts: &[MimePart]) -> usize {
    parts.iter().map(|part| PART_BYTES + part.mime.len() + part.data.len()).sum()
}

fn text(mime: &str, value: Value) -> String {
    let is_json = mime == "application/json" || mime.ends_with("+json");
    match value {
        Value::String(text) if !is_json => text,
        // Notebook files keep long text as lines; some libraries send it that way.
        Value::Array(lines) if !is_json && lines.iter().all(Value::is_string) => {
            lines.iter().filter_map(Value::as_str).collect()
        }
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(mime: &str, value: Value) -> String {
        parts(Map::from_iter([(mime.to_owned(), value)])).remove(0).data
    }

    #[test]
    fn text_stays_and_json_is_written_out() {
        assert_eq!(part("text/plain", "a".into()), "a");
        assert_eq!(part("text/html", serde_json::json!(["a\n", "b"])), "a\nb");
        assert_eq!(part("application/json", serde_json::json!({"a": 1})), r#"{"a":1}"#);
        assert_eq!(part("application/json", "a".into()), r#""a""#);
        assert_eq!(part("application/vnd.x.v1+json", serde_json::json!(["a"])), r#"["a"]"#);
        assert_eq!(part("text/plain", serde_json::json!(1)), "1");
    }
}
