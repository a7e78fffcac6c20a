//! The result of statistics, as it is shown.

use jiff::Timestamp;
use serde::Serialize;

use super::cell::Cell;

/// The statistics of all reports: what `--format json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The path of the numbers.
    pub path: String,
    /// The path of the groups.
    pub by: Option<String>,
    /// The length of a time step.
    pub step_seconds: Option<u64>,
    /// The first time that counts, as asked for.
    pub since: Option<Timestamp>,
    /// The last time that counts, as asked for.
    pub until: Option<Timestamp>,
    /// The quantiles of all measures, from 0 to 1.
    pub quantiles: Vec<f64>,
    /// The largest groups by count, largest first.
    pub series: Vec<Series>,
    /// All other groups together.
    pub other: Option<Other>,
    /// The number of reports that were read.
    pub reports: u64,
    /// The number of reports that match the filter.
    pub reports_matched: u64,
    /// Whether a limit was reached: then groups are missing in `series` but counted in `other`, points are missing but
    /// counted in their series, or quantiles and distinct values are less exact.
    pub limited: bool,
    /// Whether errors were asked for.
    #[serde(skip)]
    pub with_errors: bool,
    /// Whether distinct values were asked for.
    #[serde(skip)]
    pub with_distinct: bool,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// The value of the group: a string itself, another value as JSON text, nothing for null.
    pub group: Option<String>,
    /// Over all time.
    #[serde(flatten)]
    pub total: Measures,
    /// By time, oldest first.
    pub points: Vec<Point>,
}

/// The groups that are not shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Other {
    /// Over all time.
    #[serde(flatten)]
    pub total: Measures,
    /// By time, oldest first.
    pub points: Vec<Point>,
}

/// One time step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// When the step begins.
    pub time: Timestamp,
    /// In this step.
    #[serde(flatten)]
    pub measures: Measures,
}

/// What is measured of a set of reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measures {
    /// How many numbers there are.
    pub count: u64,
    /// How many values the path of errors has.
    pub errors: u64,
    /// The smallest number.
    pub min: Option<f64>,
    /// The sum of the numbers divided by their count.
    pub mean: Option<f64>,
    /// The largest number.
    pub max: Option<f64>,
    /// The quantiles that were asked for, within 1 %.
    pub quantiles: Vec<Option<f64>>,
    /// The number of distinct values, within a few percent, if it was asked for.
    pub distinct: Option<u64>,
}

impl Measures {
    pub(super) fn new(cell: &Cell, quantiles: &[f64], with_distinct: bool) -> Self {
        let has_numbers = cell.count > 0;
        let mean = (cell.sum / cell.count as f64).clamp(cell.min, cell.max.max(cell.min));
        // A quantile is never outside of the range that is known exactly.
        let quantiles = match cell.numbers.quantiles(quantiles) {
            Some(numbers) => numbers.into_iter().map(|number| Some(number.clamp(cell.min, cell.max))).collect(),
            None => vec![None; quantiles.len()],
        };
        Self {
            count: cell.count,
            errors: cell.errors,
            min: has_numbers.then_some(cell.min),
            mean: has_numbers.then_some(mean).filter(|mean| mean.is_finite()),
            max: has_numbers.then_some(cell.max),
            quantiles,
            distinct: with_distinct.then(|| cell.distinct.count()),
        }
    }
}
