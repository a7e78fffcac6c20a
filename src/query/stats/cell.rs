//! What is counted for one group, or for one group in one time step.

use super::distinct::Distinct;
use super::sketch::Sketch;

/// Count, errors, sum, range, quantiles and distinct values of a set of reports.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) count: u64,
    pub(super) errors: u64,
    pub(super) sum: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) numbers: Sketch,
    pub(super) distinct: Distinct,
}

/// An estimate of the memory of a cell without its numbers and distinct values, with its place in a map.
pub(super) const CELL_BYTES: usize = size_of::<Cell>() + 64;

impl Default for Cell {
    fn default() -> Self {
        Self {
            count: 0,
            errors: 0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            numbers: Sketch::default(),
            distinct: Distinct::default(),
        }
    }
}

impl Cell {
    pub(super) fn add(&mut self, number: f64, may_grow: bool) -> usize {
        self.count += 1;
        self.sum += number;
        self.min = self.min.min(number);
        self.max = self.max.max(number);
        self.numbers.add(number, may_grow)
    }

    pub(super) fn merge(&mut self, other: &Self, may_grow: bool) -> usize {
        self.count += other.count;
        self.errors += other.errors;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.numbers.merge(&other.numbers, may_grow) + self.distinct.merge(&other.distinct, may_grow)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0 && self.errors == 0 && self.distinct.count() == 0
    }
}
