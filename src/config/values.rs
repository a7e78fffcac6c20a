//! How values are written: one parser per kind of value, and the description of each kind for error messages.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SpanRelativeTo;
use serde::de::value::StrDeserializer;
use serde::de::{Error as _, IntoDeserializer};
use serde::{Deserialize, Deserializer};

pub(super) const SIZE: &str = "a size such as 64KiB or 10MiB";
pub(super) const SIZE_OR_OFF: &str = "a size such as 64KiB or 10MiB, or off";
pub(super) const DURATION: &str = "a duration such as 500ms, 60s or 5m, more than zero and up to a year";
pub(super) const AGE: &str = "a duration such as 12h, 30d or 8w, up to 100 years";
pub(super) const AGE_OR_OFF: &str = "a duration such as 12h, 30d or 8w, up to 100 years, or off";
pub(super) const DURATION_OR_OFF: &str = "a duration such as 60s or 5m, up to a year, or off";
pub(super) const DELAY: &str = "a duration such as 500ms, 60s or 5m, from 0s up to a year";
pub(super) const SWITCH: &str = "on or off";
pub(super) const AUTO_CONNECTIONS: &str =
    "a whole number from 1 to 1000000, or auto: as many as the memory permits, up to 16384";
pub(super) const COUNT: &str = "a whole number from 1 to 1000";
pub(super) const COUNT_OR_OFF: &str = "a whole number from 1 to 1000000, or off";
pub(super) const AUTO_COUNT: &str = "a whole number from 1 to 1024, or auto: one per core";
pub(super) const AUTO_THREADS: &str = "a whole number from 1 to 1024, or auto: one per core, if the memory permits";
pub(super) const RATE_OR_OFF: &str = "a rate such as 10/s, 600/m or 10/s,burst=100, or off";
pub(super) const LEVEL: &str = "a zstd level from 1 to 22";

const YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);
const CENTURY: Duration = YEAR.saturating_mul(100);

/// Whether the value turns a limit off or stands for an empty list.
pub(super) fn is_none(text: &str) -> bool {
    ["off", "none"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    parse_usize(&String::deserialize(deserializer)?)
}

/// `off` means 0 bytes.
pub(super) fn size_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        text if is_none(text) => Ok(0),
        text => parse_usize(text),
    }
}

fn parse_usize<E: serde::de::Error>(text: &str) -> Result<usize, E> {
    let size: ByteSize = text.parse().map_err(E::custom)?;
    usize::try_from(size.as_u64()).map_err(E::custom)
}

/// Parses a size of the command line.
///
/// # Errors
/// Valid values, as a noun phrase.
pub fn parse_size(text: &str) -> Result<u64, String> {
    text.parse().map(|size: ByteSize| size.as_u64()).map_err(|_| format!("not {SIZE}"))
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    match delay(deserializer)? {
        Duration::ZERO => Err(D::Error::custom("out of range")),
        duration => Ok(duration),
    }
}

/// A duration that may be zero, also without a unit.
pub(super) fn delay<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "0" => Ok(Duration::ZERO),
        text => parse_duration(text),
    }
}

pub(super) fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    in_range(deserializer, 1..=22)
}

/// `auto` means 0 here. The value depends on other settings.
pub(super) fn auto_connections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        text if text.eq_ignore_ascii_case("auto") => Ok(0),
        text => count(text.into_deserializer()),
    }
}

pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    in_range(deserializer, 1..=1_000_000)
}

/// A number of processes.
pub(super) fn processes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    in_range(deserializer, 1..=1000)
}

fn in_range<'de, T: FromStr + PartialOrd, D: Deserializer<'de>>(
    deserializer: D,
    range: RangeInclusive<T>,
) -> Result<T, D::Error> {
    let number = String::deserialize(deserializer)?.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| D::Error::custom("out of range"))
}

/// Zero means off, too.
pub(super) fn duration_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        text if is_none(text) => Ok(None),
        text => Ok(Some(parse_duration(text)?).filter(|duration| !duration.is_zero())),
    }
}

/// Like [`duration_or_off`], but up to a century.
pub(super) fn age_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        text if is_none(text) => Ok(None),
        text => Ok(Some(parse_duration_up_to(CENTURY, text)?).filter(|age| !age.is_zero())),
    }
}

/// Parses an age of the command line.
///
/// # Errors
/// Valid values, as a noun phrase.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    parse_duration_up_to::<serde::de::value::Error>(CENTURY, text).map_err(|_| format!("not {AGE}"))
}

fn parse_duration<E: serde::de::Error>(text: &str) -> Result<Duration, E> {
    parse_duration_up_to(YEAR, text)
}

fn parse_duration_up_to<E: serde::de::Error>(max: Duration, text: &str) -> Result<Duration, E> {
    let span: jiff::Span = text.parse().map_err(E::custom)?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(E::custom)?;
    match Duration::try_from(duration) {
        Ok(duration) if duration <= max => Ok(duration),
        _ => Err(E::custom("out of range")),
    }
}

pub(super) fn auto_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.eq_ignore_ascii_case("auto") {
        return Ok(std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
    }
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err(D::Error::custom("out of range")),
    }
}

pub(super) fn count_or_off<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        text if is_none(text) => Ok(None),
        text => count(text.into_deserializer()).map(Some),
    }
}

/// A value with a parser of its own.
pub(super) fn parsed<'de, T: FromStr<Err: std::fmt::Display>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// A value with a parser of its own, or `off`.
pub(super) fn parsed_or_off<'de, T: FromStr<Err: std::fmt::Display>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        text if is_none(text) => Ok(None),
        text => text.parse().map(Some).map_err(D::Error::custom),
    }
}

/// A list with a parser of its own. `none` is the empty list.
pub(super) fn list<'de, T: FromStr<Err: std::fmt::Display> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    parsed_or_off(deserializer).map(Option::unwrap_or_default)
}

pub(super) fn path_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok((!is_none(&text)).then(|| text.into()))
}

pub(super) fn text_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok((!is_none(&text)).then_some(text))
}

/// One of several words, in any letter case.
pub(super) fn word<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?.to_ascii_lowercase();
    let word: StrDeserializer<'_, D::Error> = text.as_str().into_deserializer();
    T::deserialize(word)
}

/// One syntax for all switches. It includes the forms of Go's `strconv.ParseBool`, which the earlier server accepted.
pub(super) fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match String::deserialize(deserializer)?.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" | "t" => Ok(true),
        "off" | "false" | "no" | "0" | "f" => Ok(false),
        _ => Err(D::Error::custom("not a switch")),
    }
}
