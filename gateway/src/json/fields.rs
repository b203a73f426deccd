//! A JSON object that is taken apart field by field. Faults name the field with its path (`files[0].path`), and say what
//! was expected. `null` counts as absent; fields that nobody takes are ignored.

use crate::error::ApiError;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The fields that are left of one JSON object.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Where the object is in the body: empty, or `files[0].`.
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Parses a body that must be one JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Err(ApiError::invalid("the body is empty; a JSON object is needed"));
        }
        let text = std::str::from_utf8(body).map_err(|error| {
            ApiError::invalid(format!("the body is not valid UTF-8 at byte {}", error.valid_up_to()))
        })?;
        let value: Value = serde_json::from_str(text)
            .map_err(|error| ApiError::invalid(format!("the body is not valid JSON: {error}")))?;
        match value {
            Value::Object(map) => Ok(Self { path: String::new(), map }),
            other => Err(ApiError::invalid(format!("the body must be a JSON object, not {}", kind(&other)))),
        }
    }

    /// An error about one field.
    pub(crate) fn fault(&self, name: &str, fault: impl std::fmt::Display) -> ApiError {
        ApiError::invalid(format!("{}{name}: {fault}", self.path))
    }

    /// A field of any type.
    pub(crate) fn any(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A string.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(name, "a string", &other)),
        }
    }

    /// A string that must be there.
    pub(crate) fn required_text(&mut self, name: &str) -> Result<String, ApiError> {
        self.text(name)?.ok_or_else(|| self.fault(name, "required"))
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong_type(name, "true or false", &other)),
        }
    }

    /// A whole number of any sign.
    pub(crate) fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_i64() {
                Some(integer) => Ok(Some(integer)),
                None => Err(self.fault(name, format!("expected a whole number, got {number}"))),
            },
            Some(other) => Err(self.wrong_type(name, "a whole number", &other)),
        }
    }

    /// A whole number from `min` to `max`.
    pub(crate) fn number(&mut self, name: &str, min: u64, max: u64) -> Result<Option<u64>, ApiError> {
        match self.integer(name)? {
            None => Ok(None),
            Some(integer) => match u64::try_from(integer) {
                Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
                _ => Err(self.fault(name, format!("must be from {min} to {max}, got {integer}"))),
            },
        }
    }

    /// A list of strings.
    pub(crate) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let Some(items) = self.list(name)? else { return Ok(None) };
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Value::String(text) => texts.push(text),
                other => return Err(self.wrong_type(&format!("{name}[{index}]"), "a string", &other)),
            }
        }
        Ok(Some(texts))
    }

    /// An object whose values are strings.
    pub(crate) fn text_map(&mut self, name: &str) -> Result<Option<HashMap<String, String>>, ApiError> {
        let map = match self.any(name) {
            None => return Ok(None),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(self.wrong_type(name, "an object of strings", &other)),
        };
        let mut texts = HashMap::with_capacity(map.len());
        for (key, value) in map {
            match value {
                Value::String(text) => texts.insert(key, text),
                other => return Err(self.wrong_type(&format!("{name}.{}", shown(&key)), "a string", &other)),
            };
        }
        Ok(Some(texts))
    }

    /// A list of whole numbers from `min` to `max`.
    pub(crate) fn numbers(&mut self, name: &str, min: u64, max: u64) -> Result<Option<Vec<u64>>, ApiError> {
        let Some(items) = self.list(name)? else { return Ok(None) };
        let mut numbers = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match item.as_u64() {
                Some(number) if (min..=max).contains(&number) => numbers.push(number),
                _ => {
                    let fault = format!("must be from {min} to {max}, got {}", shown(&item.to_string()));
                    return Err(self.fault(&format!("{name}[{index}]"), fault));
                }
            }
        }
        Ok(Some(numbers))
    }

    /// An object that is read field by field in turn.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { path: format!("{}{name}.", self.path), map })),
            Some(other) => Err(self.wrong_type(name, "an object", &other)),
        }
    }

    /// Sets a field to a text, as if the caller had sent it.
    pub(crate) fn set(&mut self, name: &str, text: &str) {
        self.map.insert(name.to_owned(), text.into());
    }

    /// Whether a field is there as a string.
    pub(crate) fn is_text(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_string)
    }

    /// A list of objects.
    pub(crate) fn objects(&mut self, name: &str) -> Result<Option<Vec<Self>>, ApiError> {
        let Some(items) = self.list(name)? else { return Ok(None) };
        let mut objects = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Value::Object(map) => {
                    objects.push(Self { path: format!("{}{name}[{index}].", self.path), map });
                }
                other => return Err(self.wrong_type(&format!("{name}[{index}]"), "an object", &other)),
            }
        }
        Ok(Some(objects))
    }

    fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong_type(name, "a list", &other)),
        }
    }

    fn wrong_type(&self, name: &str, expected: &str, got: &Value) -> ApiError {
        self.fault(name, format!("expected {expected}, got {}", kind(got)))
    }
}

/// A caller's text as it may appear in a message: short.
pub(crate) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    let mut short: String =
        text.chars().take(CHARS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(body: &str) -> String {
        Fields::parse(body.as_bytes()).expect_err("refused").to_string()
    }

    #[test]
    fn broken_bodies_say_where() {
        assert_eq!(fault(r#"{"code": }"#), "the body is not valid JSON: expected value at line 1 column 10");
        assert!(fault("").contains("empty"));
        assert_eq!(fault("[1]"), "the body must be a JSON object, not a list");
        assert!(fault(r#"{"a":1} trailing"#).contains("trailing characters at line 1"));
        assert!(fault(&"[".repeat(100_000)).contains("recursion limit"));
        let error = Fields::parse(b"{\"code\":\"\xff\"}").expect_err("refused");
        assert_eq!(error.to_string(), "the body is not valid UTF-8 at byte 9");
    }

    #[test]
    fn faults_name_the_field_with_its_path() {
        let body = br#"{"s":1,"n":"x","f":0,"l":["a",2],"m":{"k":[]},"o":[{"p":5},7],"big":1e99,"neg":-1}"#;
        let mut fields = Fields::parse(body).expect("an object");
        let says = |result: Result<(), ApiError>| result.expect_err("a fault").to_string();
        assert_eq!(says(fields.text("s").map(drop)), "s: expected a string, got a number");
        assert_eq!(says(fields.integer("n").map(drop)), "n: expected a whole number, got a string");
        assert_eq!(says(fields.flag("f").map(drop)), "f: expected true or false, got a number");
        assert_eq!(says(fields.texts("l").map(drop)), "l[1]: expected a string, got a number");
        assert_eq!(says(fields.text_map("m").map(drop)), "m.k: expected a string, got a list");
        assert_eq!(says(fields.objects("o").map(drop)), "o[1]: expected an object, got a number");
        assert_eq!(says(fields.integer("big").map(drop)), "big: expected a whole number, got 1e+99");
        assert_eq!(says(fields.number("neg", 1, 9).map(drop)), "neg: must be from 1 to 9, got -1");
        assert_eq!(says(fields.required_text("none").map(drop)), "none: required");
    }

    #[test]
    fn null_is_absent_and_nested_paths_are_whole() {
        let mut fields = Fields::parse(br#"{"a":null,"o":[{"p":5}]}"#).expect("an object");
        assert!(matches!(fields.text("a"), Ok(None)));
        let mut objects = fields.objects("o").expect("a list").expect("present");
        let error = objects[0].text("p").expect_err("a fault");
        assert_eq!(error.to_string(), "o[0].p: expected a string, got a number");
    }
}
