//! Time ranges.

use std::time::SystemTime;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::config::parse_age;

/// Reports from `since` to `until`, both included. `None` is without a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeRange {
    /// The earliest time.
    pub since: Option<Timestamp>,
    /// The latest time.
    pub until: Option<Timestamp>,
}

impl TimeRange {
    /// Whether there is a limit.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }

    /// Whether a time is in the range.
    #[must_use]
    pub fn contains(&self, time: Timestamp) -> bool {
        self.since.is_none_or(|since| since <= time) && self.until.is_none_or(|until| time <= until)
    }

    /// Whether a part of an interval is in the range. `None`: the interval has no end yet.
    #[must_use]
    pub fn overlaps(&self, first: SystemTime, last: Option<SystemTime>) -> bool {
        self.since.is_none_or(|since| last.is_none_or(|last| last >= SystemTime::from(since)))
            && self.until.is_none_or(|until| first <= SystemTime::from(until))
    }
}

/// Parses a time: RFC 3339, a date (its midnight in UTC), `now`, or an age such as `15m` or `2d` before `now`.
///
/// # Errors
/// What a valid time is.
pub fn parse_time(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if text == "now" {
        return Ok(now);
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(date) = text.parse::<Date>()
        && text.len() == "2026-11-22".len()
        && let Ok(midnight) = date.to_zoned(TimeZone::UTC)
    {
        return Ok(midnight.timestamp());
    }
    let age = parse_age(text).ok().and_then(|age| SignedDuration::try_from(age).ok());
    age.and_then(|age| now.checked_sub(age).ok())
        .ok_or_else(|| "not a time: write 2026-11-22T15:05:12Z, 2026-11-22, or an age such as 15m or 2d".to_owned())
}

/// The time that a JSON value stands for: a string in RFC 3339, or a number of milliseconds since 1970.
pub(super) fn time_of_value(raw: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(raw).ok()?;
    match text.strip_prefix('"') {
        Some(text) => text.strip_suffix('"')?.parse().ok(),
        None => match text.parse::<i64>() {
            Ok(milliseconds) => Timestamp::from_millisecond(milliseconds).ok(),
            Err(_) => {
                let milliseconds = text.parse::<f64>().ok().filter(|number| number.is_finite())?;
                Timestamp::from_microsecond((milliseconds * 1000.0) as i64).ok()
            }
        },
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_time_is_absolute_or_an_age() {
        let now = at("2026-11-22T15:00:00Z");
        for (text, time) in [
            ("2026-11-22T14:00:00Z", "2026-11-22T14:00:00Z"),
            ("2026-11-22T14:00:00.5+02:00", "2026-11-22T12:00:00.5Z"),
            ("2026-11-22", "2026-11-22T00:00:00Z"),
            ("now", "2026-11-22T15:00:00Z"),
            ("15m", "2026-11-22T14:45:00Z"),
            ("1h30m", "2026-11-22T13:30:00Z"),
            ("2d", "2026-11-20T15:00:00Z"),
        ] {
            assert_eq!(parse_time(text, now), Ok(at(time)), "{text}");
        }
        for text in ["", "yesterday", "15", "-15m", "2026-13-01", "2026-11-22T14:00:00", "1e9", "9999999y", "2026-11"] {
            assert!(parse_time(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn the_time_of_a_report_is_a_string_or_a_number_of_milliseconds() {
        assert_eq!(time_of_value(b"\"2026-11-22T14:00:00.250Z\""), Some(at("2026-11-22T14:00:00.25Z")));
        assert_eq!(time_of_value(b"1795356000250"), Some(at("2026-11-22T14:00:00.25Z")));
        assert_eq!(time_of_value(b"1795356000250.5"), Some(at("2026-11-22T14:00:00.2505Z")));
        for raw in [&b"null"[..], b"{}", b"\"soon\"", b"1e300", b"9223372036854775807", b"\"", b"", b"\xff"] {
            assert_eq!(time_of_value(raw), None, "{:?}", String::from_utf8_lossy(raw));
        }
    }

    #[test]
    fn a_range_includes_its_limits() {
        let range = TimeRange { since: Some(at("2026-11-22T14:00:00Z")), until: Some(at("2026-11-22T15:00:00Z")) };
        for (time, is_inside) in [("13:59:59", false), ("14:00:00", true), ("15:00:00", true), ("15:00:01", false)] {
            let time = at(&format!("2026-11-22T{time}Z"));
            assert_eq!(range.contains(time), is_inside, "{time}");
            assert_eq!(range.overlaps(time.into(), Some(time.into())), is_inside, "{time}");
        }
        assert!(range.overlaps(at("2026-11-22T13:00:00Z").into(), None));
        assert!(range.overlaps(at("2026-11-22T13:00:00Z").into(), Some(at("2026-11-22T16:00:00Z").into())));
        assert!(!range.overlaps(at("2026-11-22T16:00:00Z").into(), None));
    }
}
