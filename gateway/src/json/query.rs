//! The query of a request, taken apart parameter by parameter, as `fields` does it with bodies. Parameters that nobody
//! takes are ignored; of one that is given twice, the last counts.

use crate::error::ApiError;
use axum::extract::FromRequestParts;
use http::request::Parts;
use std::{collections::HashMap, convert::Infallible};

/// The parameters that are left of one query.
#[derive(Debug, Default)]
pub(crate) struct Query {
    map: HashMap<String, String>,
}

impl Query {
    /// Reads `a=b&c=d`, percent-decoded.
    pub(crate) fn parse(text: &str) -> Self {
        Self { map: form_urlencoded::parse(text.as_bytes()).into_owned().collect() }
    }

    /// An error about one parameter.
    pub(crate) fn fault(&self, name: &str, fault: impl std::fmt::Display) -> ApiError {
        ApiError::invalid(format!("{name}: {fault}"))
    }

    /// A parameter that is there and not empty.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        self.map.remove(name).filter(|text| !text.is_empty())
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.text(name).as_deref() {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(_) => Err(self.fault(name, "must be true or false")),
        }
    }

    /// A whole number from `min` to `max`.
    pub(crate) fn number(&mut self, name: &str, min: u64, max: u64) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(self.fault(name, format!("must be a whole number from {min} to {max}"))),
        }
    }

    /// All parameters whose names begin with `prefix`, without it.
    pub(crate) fn below(&mut self, prefix: &str) -> HashMap<String, String> {
        let names: Vec<String> = self.map.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        names
            .into_iter()
            .filter_map(|name| Some((name.strip_prefix(prefix)?.to_owned(), self.map.remove(&name)?)))
            .collect()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_checked() {
        let mut query = Query::parse("a=1&b=x%2Fy+z&c=&d=true&e=7&m.k=v&m.=w&a=2");
        assert_eq!(query.text("a").as_deref(), Some("2"));
        assert_eq!(query.text("b").as_deref(), Some("x/y z"));
        assert_eq!(query.text("c"), None);
        assert!(matches!(query.flag("d"), Ok(Some(true))));
        assert!(matches!(query.number("e", 1, 9), Ok(Some(7))));
        assert_eq!(query.below("m.").len(), 2);
        let mut query = Query::parse("d=maybe&e=10&f=-1");
        assert!(
            query.flag("d").is_err() && query.number("e", 1, 9).is_err() && query.number("f", 0, 9).is_err()
        );
    }
}
