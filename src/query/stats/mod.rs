//! Statistics of a number in the reports, by group and time step.
//!
//! [`run()`] reads all reports. Each batch has its own [`Stats`], which takes one report after another. They are merged in
//! the order of the batches. [`Summary`] is the result, and `output` shows it.
//!
//! # What is counted
//!
//! - The numbers at `path`. Other values, and numbers beyond the range of `f64`, are ignored.
//! - The values at `errors` that are not null.
//! - The distinct values at `distinct` that are not null. Strings that differ only in their escapes are equal.
//!
//! Each of these counts for the values at `by` in the same element of the last array that both paths share: see
//! `extract`. If there are several such values, it counts for each of them, but for the first
//! [`MAX_GROUPS_PER_VALUE`] at most. If there is none, it counts for the group null. Strings are groups by their
//! content, all other values by their JSON text.
//!
//! The time of a report decides its step. A report without a time of its own has the time at which its batch began.
//! Steps are aligned to 1970-01-01T00:00:00Z.
//!
//! # Limits
//!
//! Memory is limited, whatever the reports contain. Groups and steps are known by order of appearance:
//!
//! - After [`MAX_GROUPS`] groups, or when three quarters of the memory are in use, a new group counts as `other`. So
//!   does a group whose JSON text is longer than [`MAX_GROUP_BYTES`].
//! - After [`MAX_STEPS`] steps, or when three quarters of the memory are in use, a new step of a group gets no point. It
//!   counts in the total of its series.
//! - When all memory is in use, a number counts as the nearest number that its group and step already has, and the
//!   count of distinct values stops.
//!
//! In these cases, [`Summary::limited`] is true, and the result depends on the order of the reports. It never depends on
//! the number of threads.

mod cell;
mod distinct;
mod number;
mod output;
mod run;
mod sketch;
mod summary;
#[cfg(all(test, not(netwatch_loom)))]
mod tests;
mod totals;

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::num::NonZeroU32;

use foldhash::quality;
use jiff::Timestamp;

use self::number::number;
pub use self::output::Format;
pub use self::run::run;
pub use self::summary::{Measures, Other, Point, Series, Summary};
use self::totals::Totals;
use super::extract::{Extractor, Found, Span, bytes};
use super::path::Path;
use super::range::{TimeRange, time_of_value};

/// Maximum number of groups, not counting `other`.
pub const MAX_GROUPS: usize = 10_000;

/// Maximum length of the JSON text of a group.
pub const MAX_GROUP_BYTES: usize = 1_024;

/// Maximum number of time steps.
pub const MAX_STEPS: usize = 10_000;

/// Maximum number of groups that one value counts for.
pub const MAX_GROUPS_PER_VALUE: usize = 100;

/// The JSON text of a group without a value.
const NULL: &[u8] = b"null";

/// The index of the path of the time.
const TIME: usize = 0;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The numbers.
    pub path: Path,
    /// The group of each number.
    pub by: Option<Path>,
    /// Values that count as errors.
    pub errors: Option<Path>,
    /// Values of which the distinct ones are counted.
    pub distinct: Option<Path>,
    /// The length of a time step in seconds.
    pub step_seconds: Option<NonZeroU32>,
    /// Quantiles from 0 to 1.
    pub quantiles: Vec<f64>,
    /// The number of groups that are shown.
    pub top: usize,
    /// The time of a report, and which times count.
    pub time: Path,
    /// Only reports in this range count.
    pub range: TimeRange,
}

/// For reports without a time of their own.
#[derive(Debug, Clone, Copy)]
pub struct BatchTime {
    /// When the batch began.
    pub time: Timestamp,
    /// Whether a part of the batch is in the time range.
    pub is_in_range: bool,
}

/// Statistics of the reports so far.
#[derive(Debug)]
pub struct Stats {
    options: Options,
    extractor: Extractor,
    /// What is counted.
    measured: Vec<Measured>,
    totals: Totals,
    found: Found,
    values: Values,
}

/// One kind of value that is counted.
#[derive(Debug)]
struct Measured {
    kind: Kind,
    /// The index of its path.
    path: usize,
    /// The index of its pair with the path of the groups, and the index of that path.
    group: Option<(usize, usize)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Error,
    Distinct,
}

/// The values of one scope that count. Used again for each scope.
#[derive(Debug, Default)]
struct Values {
    numbers: Vec<f64>,
    errors: u64,
    hashes: Vec<u64>,
    /// Deterministic, so that sets of distinct values can be merged.
    hasher: quality::FixedState,
}

impl Stats {
    /// Statistics of no report, with at most this much memory.
    #[must_use]
    pub fn new(options: Options, memory_bytes: usize) -> Self {
        let kinds = [
            (Kind::Number, Some(&options.path)),
            (Kind::Error, options.errors.as_ref()),
            (Kind::Distinct, options.distinct.as_ref()),
        ];
        let mut paths = vec![&options.time];
        let mut measured = Vec::new();
        for (kind, counted) in kinds.into_iter().filter_map(|(kind, path)| Some((kind, path?))) {
            measured.push(Measured { kind, path: paths.len(), group: None });
            paths.push(counted);
        }
        let mut pairs = Vec::new();
        if let Some(by) = &options.by {
            let group = paths.len();
            paths.push(by);
            for measured in &mut measured {
                measured.group = Some((pairs.len(), group));
                pairs.push((measured.path, group));
            }
        }
        let extractor = Extractor::new(&paths, &pairs);
        let totals = Totals::new(memory_bytes);
        Self { options, extractor, measured, totals, found: Found::default(), values: Values::default() }
    }

    /// Adds a report, if its time is in the range and it `matches`. `line` is one JSON object; anything else is ignored.
    pub fn add(&mut self, line: &[u8], batch: BatchTime, matches: impl FnOnce(&[u8]) -> bool) {
        let Self { options, extractor, measured, totals, found, values } = self;
        let is_object = extractor.find(line, found);
        let own_time = found.values(TIME).first().and_then(|span| time_of_value(bytes(line, span)));
        if !own_time.map_or(batch.is_in_range, |time| options.range.contains(time)) {
            return;
        }
        totals.reports += 1;
        if !is_object || !matches(line) {
            return;
        }
        totals.reports_matched += 1;
        let time = own_time.unwrap_or(batch.time);
        let step = options.step_seconds.map(|seconds| time.as_second().div_euclid(i64::from(seconds.get())));
        for Measured { kind, path, group } in measured {
            let mut add = |spans: &[Span], groups: &[Span]| {
                if !values.read(*kind, line, spans) {
                    return;
                }
                if groups.is_empty() {
                    totals.add(NULL, step, values);
                }
                for group in groups.iter().take(MAX_GROUPS_PER_VALUE) {
                    totals.add(&group_text(bytes(line, group)), step, values);
                }
            };
            match group {
                Some((pair, by)) => found.for_each_scope(*pair, (*path, *by), add),
                None => add(found.values(*path), &[]),
            }
        }
    }

    /// Adds all reports of `other`, which has the same options, as if they came after the reports of `self`.
    pub fn merge(&mut self, other: Self) {
        self.totals.merge(other.totals);
    }

    /// The result.
    #[must_use]
    pub fn finish(self) -> Summary {
        self.totals.finish(&self.options)
    }
}

impl Values {
    /// Reads the values at `spans` that count as `kind`. Returns whether there are any.
    fn read(&mut self, kind: Kind, line: &[u8], spans: &[Span]) -> bool {
        self.numbers.clear();
        self.hashes.clear();
        self.errors = 0;
        let values = spans.iter().map(|span| bytes(line, span));
        let mut present = values.clone().filter(|json| *json != NULL);
        match kind {
            Kind::Number => self.numbers.extend(values.filter_map(number)),
            Kind::Error => self.errors = present.count() as u64,
            Kind::Distinct => {
                let Self { hashes, hasher, .. } = self;
                hashes.extend(present.by_ref().map(|json| hasher.hash_one(group_text(json))));
            }
        }
        !self.numbers.is_empty() || self.errors > 0 || !self.hashes.is_empty()
    }
}

/// The text that stands for a JSON value: strings that differ only in their escapes have the same text.
fn group_text(json: &[u8]) -> Cow<'_, [u8]> {
    if json.first() == Some(&b'"')
        && memchr::memchr(b'\\', json).is_some()
        && let Ok(text) = serde_json::from_slice::<String>(json)
        && let Ok(json) = serde_json::to_vec(&text)
    {
        return Cow::Owned(json);
    }
    Cow::Borrowed(json)
}
