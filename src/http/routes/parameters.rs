//! The parameters in the query of a URL.

use std::time::SystemTime;

use jiff::Timestamp;

use crate::http::error::ApiError;
use crate::query::parse_time;

/// Maximum length of a query, encoded.
const MAX_BYTES: usize = 8 * 1024;

/// The parameters of one request, in any order. Each has a known name, which occurs once.
#[derive(Debug)]
pub(super) struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    /// # Errors
    /// If the query is too long, or has an unknown name, a name twice, or a value that is not text.
    pub(super) fn parse(query: Option<&str>, known: &[&'static str]) -> Result<Self, ApiError> {
        let query = query.unwrap_or_default();
        if query.len() > MAX_BYTES {
            return Err(ApiError::BadQuery(format!("The parameters are longer than {MAX_BYTES} bytes.")));
        }
        let mut parameters: Vec<(&'static str, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let Some(name) = known.iter().find(|known| **known == name) else {
                return Err(ApiError::BadQuery(unknown(&name, known)));
            };
            if parameters.iter().any(|(other, _)| other == name) {
                return Err(ApiError::BadQuery(format!("The parameter {name} occurs twice.")));
            }
            // Bytes that are not UTF-8 have become U+FFFD.
            if value.contains(['\0', '\u{fffd}']) {
                return Err(ApiError::BadQuery(format!("The parameter {name} is not text in UTF-8.")));
            }
            parameters.push((name, value.into_owned()));
        }
        Ok(Self(parameters))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| &**value)
    }

    /// A time: RFC 3339, or an age such as `15m`.
    pub(super) fn time(&self, name: &str) -> Result<Option<SystemTime>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match parse_time(text, Timestamp::now()) {
            Ok(time) => Ok(Some(time.into())),
            Err(error) => Err(ApiError::BadQuery(format!("The parameter {name} is {error}."))),
        }
    }

    /// One of several words. The first one is the default.
    pub(super) fn word<T: Copy>(&self, name: &str, words: &[(&'static str, T)]) -> Result<T, ApiError> {
        let Some(text) = self.get(name) else { return Ok(words[0].1) };
        words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            ApiError::BadQuery(format!("The parameter {name} is not one of: {}.", words.join(", ")))
        })
    }

    /// A number from 1 to `max`.
    pub(super) fn count(&self, name: &str, default: usize, max: usize) -> Result<usize, ApiError> {
        let Some(text) = self.get(name) else { return Ok(default) };
        match text.parse() {
            Ok(count) if (1..=max).contains(&count) => Ok(count),
            _ => Err(ApiError::BadQuery(format!("The parameter {name} is not a whole number from 1 to {max}."))),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, &**value))
    }
}

fn unknown(name: &str, known: &[&str]) -> String {
    let name: String = name.chars().take(40).collect();
    match known {
        [] => format!("There is no parameter {name:?}: this path has none."),
        _ => format!("There is no parameter {name:?}. These are known: {}.", known.join(", ")),
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Vec<(&'static str, String)>, String> {
        Parameters::parse(Some(query), &["since", "filter"]).map(|it| it.0).map_err(|error| error.to_string())
    }

    #[test]
    fn each_parameter_is_known_occurs_once_and_is_text() {
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(
            parse("filter=.a%20==%20%22%C3%A9%22+and+.b&since="),
            Ok(vec![("filter", ".a == \"é\" and .b".to_owned()), ("since", String::new())])
        );
        for (query, message) in [
            ("sinc=1h", "There is no parameter \"sinc\". These are known: since, filter."),
            ("since=1h&since=1h", "The parameter since occurs twice."),
            ("filter=%ff", "The parameter filter is not text in UTF-8."),
            ("filter=a%00b", "The parameter filter is not text in UTF-8."),
        ] {
            assert_eq!(parse(query), Err(message.to_owned()), "{query}");
        }
        assert!(parse(&format!("filter={}", "x".repeat(MAX_BYTES - 7))).is_ok());
        assert!(parse(&format!("filter={}", "x".repeat(MAX_BYTES - 6))).is_err());
    }
}
