//! Cells by group and time step, within the limits of memory.

use std::collections::{BTreeMap, HashMap, HashSet};

use foldhash::fast::RandomState;
use jiff::Timestamp;

use super::cell::{CELL_BYTES, Cell};
use super::summary::{Measures, Other, Point, Series, Summary};
use super::{MAX_GROUP_BYTES, MAX_GROUPS, MAX_STEPS, NULL, Options, Values};

/// All cells. A group is known by its index in `groups`, a cell by its index in `cells`.
#[derive(Debug)]
pub(super) struct Totals {
    /// In order of appearance. The first one is `other`.
    groups: Vec<Group>,
    by_text: HashMap<Box<[u8]>, usize, RandomState>,
    cells: Vec<Cell>,
    /// The cells of the points, by group and step.
    points: HashMap<(usize, i64), usize, RandomState>,
    steps: HashSet<i64, RandomState>,
    pub(super) reports: u64,
    pub(super) reports_matched: u64,
    used_bytes: usize,
    memory_bytes: usize,
    limited: bool,
}

/// The group of values whose group is not kept.
const OTHER: usize = 0;

#[derive(Debug)]
struct Group {
    text: Box<[u8]>,
    /// The cell of everything that has no point.
    rest: usize,
    /// The step of the last value, and its cell.
    last: (i64, usize),
}

/// An estimate of the memory of a group without its cell, with its place in a map. Its text is stored twice.
const GROUP_BYTES: usize = size_of::<Group>() + 64;

impl Totals {
    pub(super) fn new(memory_bytes: usize) -> Self {
        Self {
            groups: vec![Group { text: Box::default(), rest: 0, last: (i64::MIN, 0) }],
            by_text: HashMap::default(),
            cells: vec![Cell::default()],
            points: HashMap::default(),
            steps: HashSet::default(),
            reports: 0,
            reports_matched: 0,
            used_bytes: 0,
            memory_bytes,
            limited: false,
        }
    }

    /// Adds values to the group with this text.
    pub(super) fn add(&mut self, group: &[u8], step: Option<i64>, values: &Values) {
        let group = self.group(group);
        let may_grow = self.may_grow();
        let cell = self.cell(group, step);
        let cell = &mut self.cells[cell];
        for number in &values.numbers {
            self.used_bytes += cell.add(*number, may_grow);
        }
        cell.errors += values.errors;
        for hash in &values.hashes {
            self.used_bytes += cell.distinct.add(*hash, may_grow);
        }
    }

    /// Adds all cells of `other`.
    pub(super) fn merge(&mut self, other: Self) {
        self.reports += other.reports;
        self.reports_matched += other.reports_matched;
        self.limited |= other.limited;
        let groups: Vec<_> = other.groups.iter().enumerate().collect();
        let own_groups: Vec<usize> = groups
            .into_iter()
            .map(|(index, group)| if index == OTHER { OTHER } else { self.group(&group.text) })
            .collect();
        for (group, own) in other.groups.iter().zip(&own_groups) {
            self.merge_cell(*own, None, &other.cells[group.rest]);
        }
        // Always in the same order, because new points are refused when the limits are reached.
        let mut points: Vec<_> = other.points.into_iter().collect();
        points.sort_unstable_by_key(|((group, step), _)| (*step, *group));
        for ((group, step), cell) in points {
            self.merge_cell(own_groups[group], Some(step), &other.cells[cell]);
        }
    }

    fn merge_cell(&mut self, group: usize, step: Option<i64>, other: &Cell) {
        let may_grow = self.may_grow();
        let cell = self.cell(group, step);
        self.used_bytes += self.cells[cell].merge(other, may_grow);
    }

    #[cfg(test)]
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Whether cells may use more memory.
    fn may_grow(&mut self) -> bool {
        let may_grow = self.used_bytes < self.memory_bytes;
        self.limited |= !may_grow;
        may_grow
    }

    /// Whether there may be new groups and points. The rest of the memory is for those that exist.
    fn may_begin(&self) -> bool {
        self.used_bytes < self.memory_bytes / 4 * 3
    }

    /// The group with this text, which may be new.
    fn group(&mut self, text: &[u8]) -> usize {
        if let Some(group) = self.by_text.get(text) {
            return *group;
        }
        let group = self.groups.len();
        if group > MAX_GROUPS || text.len() > MAX_GROUP_BYTES || !self.may_begin() {
            self.limited = true;
            return OTHER;
        }
        let rest = self.new_cell();
        self.used_bytes += GROUP_BYTES + 2 * text.len();
        self.groups.push(Group { text: text.into(), rest, last: (i64::MIN, rest) });
        self.by_text.insert(text.into(), group);
        group
    }

    /// The cell of a group for this step, which may be new.
    fn cell(&mut self, group: usize, step: Option<i64>) -> usize {
        let Group { rest, last: (last_step, last_cell), .. } = self.groups[group];
        let Some(step) = step else {
            return rest;
        };
        if step == last_step {
            return last_cell;
        }
        let cell = self.points.get(&(group, step)).copied().unwrap_or_else(|| self.new_point(group, step, rest));
        self.groups[group].last = (step, cell);
        cell
    }

    /// The cell of a new point, or `rest` if no more points may begin.
    fn new_point(&mut self, group: usize, step: i64, rest: usize) -> usize {
        let is_step_full = self.steps.len() >= MAX_STEPS && !self.steps.contains(&step);
        if is_step_full || !self.may_begin() {
            self.limited = true;
            return rest;
        }
        self.steps.insert(step);
        let cell = self.new_cell();
        self.points.insert((group, step), cell);
        cell
    }

    fn new_cell(&mut self) -> usize {
        self.used_bytes += CELL_BYTES;
        self.cells.push(Cell::default());
        self.cells.len() - 1
    }

    pub(super) fn finish(mut self, options: &Options) -> Summary {
        let mut all: Vec<GroupCells> = self
            .groups
            .iter()
            .map(|group| GroupCells {
                text: String::from_utf8_lossy(&group.text).into_owned(),
                total: std::mem::take(&mut self.cells[group.rest]),
                points: BTreeMap::new(),
            })
            .collect();
        for ((group, step), cell) in self.points {
            all[group].points.insert(step, std::mem::take(&mut self.cells[cell]));
        }
        for group in &mut all {
            for point in group.points.values() {
                group.total.merge(point, true);
            }
        }
        let mut other = all.swap_remove(OTHER);
        all.retain(|group| !group.total.is_empty());
        all.sort_by(|one, another| another.rank().cmp(&one.rank()).then_with(|| one.text.cmp(&another.text)));
        for hidden in all.split_off(options.top.min(all.len())) {
            other.merge(hidden);
        }
        let has_other = !other.total.is_empty();
        let other = other.into_series(options);
        Summary {
            path: options.path.to_string(),
            by: options.by.as_ref().map(ToString::to_string),
            step_seconds: options.step_seconds.map(|seconds| u64::from(seconds.get())),
            since: options.range.since,
            until: options.range.until,
            quantiles: options.quantiles.clone(),
            series: all.into_iter().map(|group| group.into_series(options)).collect(),
            other: has_other.then_some(Other { total: other.total, points: other.points }),
            reports: self.reports,
            reports_matched: self.reports_matched,
            limited: self.limited,
            with_errors: options.errors.is_some(),
            with_distinct: options.distinct.is_some(),
        }
    }
}

/// The cells of one group.
struct GroupCells {
    text: String,
    /// With all points.
    total: Cell,
    points: BTreeMap<i64, Cell>,
}

impl GroupCells {
    /// Groups with a greater rank come first.
    fn rank(&self) -> (u64, u64, u64) {
        (self.total.count, self.total.errors, self.total.distinct.count())
    }

    fn merge(&mut self, other: Self) {
        self.total.merge(&other.total, true);
        for (step, point) in other.points {
            self.points.entry(step).or_default().merge(&point, true);
        }
    }

    fn into_series(self, options: &Options) -> Series {
        let measures = |cell: &Cell| Measures::new(cell, &options.quantiles, options.distinct.is_some());
        let seconds = options.step_seconds.map_or(1, |seconds| i64::from(seconds.get()));
        let point = |(step, cell): (i64, Cell)| {
            // A step may begin before the first time that can be displayed.
            let time = Timestamp::from_second(step.saturating_mul(seconds)).unwrap_or(Timestamp::MIN);
            Point { time, measures: measures(&cell) }
        };
        Series {
            group: (self.text.as_bytes() != NULL).then(|| shown(self.text)),
            total: measures(&self.total),
            points: self.points.into_iter().map(point).collect(),
        }
    }
}

/// A string itself, and any other value as JSON text.
fn shown(json: String) -> String {
    if json.starts_with('"') { serde_json::from_str(&json).unwrap_or(json) } else { json }
}
