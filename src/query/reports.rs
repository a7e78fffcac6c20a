//! A query for reports.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};

use super::extract::{Extractor, Found};
use super::filter::{Evaluator, Filter, Verdict};
use super::output::Output;
use super::path::Path;
use super::range::{TimeRange, time_of_value};
use super::scan::{self, Results, Stopped};
use crate::store::{OpenBatch, Store, StoredBatch};

/// Lines that are in memory to print a batch in reverse. A longer batch is read several times.
const REVERSED_BYTES: usize = if cfg!(test) { 300 << 10 } else { 16 << 20 };

/// A report may be stored this long after the time in its stamp: its body may take so long to arrive.
const MAX_DELAY: SignedDuration = SignedDuration::from_mins(10);

/// The order of the batches, and of the reports in each. There is no order between the requests of one batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// The oldest batch first
    #[default]
    Asc,
    /// The newest batch first
    Desc,
}

/// Which reports are wanted.
#[derive(Debug, Clone)]
pub struct Query {
    /// The time range.
    pub range: TimeRange,
    /// Where a report has its own time.
    pub time: ReportTime,
    /// The order.
    pub order: Order,
    /// Maximum number of values. `None`: all.
    pub limit: Option<usize>,
    /// Which reports, and what of them. `None`: all reports.
    pub filter: Option<Filter>,
}

/// Where a report has its own time. The interval of its batch counts for a report that has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportTime {
    /// The stamp `_received_at`.
    Received,
    /// A member that the client has set.
    Member(Path),
}

/// The number of batches that were read, of all batches of the query.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Batches that were read.
    pub done: usize,
    /// All batches.
    pub total: usize,
}

/// What a query could not read or do.
#[derive(Debug, Default)]
pub struct Incomplete {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    skipped: Vec<String>,
    skipped_count: usize,
    failed_reports: usize,
    first_failure: Option<String>,
}

impl Incomplete {
    /// Maximum number of files that are named.
    const MAX_NAMED: usize = 20;

    fn skip(&self, what: String) {
        let mut state = self.lock();
        state.skipped_count += 1;
        if state.skipped.len() < Self::MAX_NAMED {
            state.skipped.push(what);
        }
    }

    fn fail(&self, message: String) {
        let mut state = self.lock();
        state.failed_reports += 1;
        state.first_failure.get_or_insert(message);
    }

    /// One line for each problem. Empty if the query is complete.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let state = self.lock();
        let mut lines = state.skipped.clone();
        if state.skipped_count > lines.len() {
            lines.push(format!("{} more files are incomplete", state.skipped_count - lines.len()));
        }
        if let Some(first) = &state.first_failure {
            let count = state.failed_reports;
            let reports = if count == 1 { "report" } else { "reports" };
            lines.push(format!("the filter failed for {count} {reports}, which are left out: {first}"));
        }
        lines
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReportTime {
    /// The path of the member.
    fn path(&self) -> Path {
        match self {
            Self::Received => "._received_at".parse().expect("it is a valid path"),
            Self::Member(path) => path.clone(),
        }
    }

    /// The latest first report of a batch that may contain a report of this range.
    fn last_start(&self, range: &TimeRange) -> Option<Timestamp> {
        match self {
            Self::Received => range.until.map(|until| until.saturating_add(MAX_DELAY).unwrap_or(Timestamp::MAX)),
            // A client may report long after the time in its report.
            Self::Member(_) => None,
        }
    }
}

impl Query {
    /// All reports.
    #[must_use]
    pub fn all() -> Self {
        Self { range: TimeRange::default(), time: ReportTime::Received, order: Order::Asc, limit: None, filter: None }
    }

    /// Finds the reports and prints them to `output`. Calls `progress` after each batch.
    ///
    /// # Errors
    /// If the data directory cannot be listed, or errors of `output`. Files that cannot be read are skipped, see
    /// `incomplete`.
    pub fn run<W: Write>(
        &self,
        store: &Store,
        output: &mut Output<W>,
        incomplete: &Incomplete,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> io::Result<()> {
        if self.limit == Some(0) {
            return Ok(());
        }
        let mut batches = store.stored_batches(self.time.last_start(&self.range).map(Into::into))?;
        if self.order == Order::Desc {
            batches.reverse();
        }
        let (batches_total, batches_done) = (batches.len(), AtomicUsize::new(0));
        scan::in_order(
            batches.into_iter(),
            || Worker::new(self, incomplete),
            |worker, batch, results| {
                let done = worker.batch(store, &batch, results);
                // Relaxed: the number is only displayed.
                progress(Progress { done: batches_done.fetch_add(1, Ordering::Relaxed) + 1, total: batches_total });
                done
            },
            |lines| {
                let flow = output.lines(lines)?;
                output.flush()?;
                Ok(flow)
            },
        )
    }
}

/// One thread of a query.
struct Worker<'a> {
    query: &'a Query,
    incomplete: &'a Incomplete,
    evaluator: Option<Evaluator>,
    /// Finds the time of a report, if there is a time range.
    time: Option<(Extractor, Found)>,
    block: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(query: &'a Query, incomplete: &'a Incomplete) -> Self {
        let time = query.range.is_limited().then(|| (Extractor::new(&[&query.time.path()], &[]), Found::default()));
        Self { query, incomplete, evaluator: query.filter.as_ref().map(Filter::evaluator), time, block: Vec::new() }
    }

    fn batch(&mut self, store: &Store, batch: &StoredBatch, results: &mut Results) -> Result<(), Stopped> {
        let open = match store.open_batch(batch) {
            Ok(Some(open)) => open,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.incomplete.skip(error.to_string());
                return Ok(());
            }
        };
        let since = self.query.range.since;
        if since.is_some_and(|since| open.last.is_some_and(|last| last < SystemTime::from(since))) {
            return Ok(());
        }
        // For reports without a time of their own.
        let overlaps = self.query.range.overlaps(batch.id().first(), open.last);
        let mut left = self.query.limit.unwrap_or(usize::MAX);
        match self.query.order {
            Order::Asc => self.forward(&open, overlaps, &mut left, results),
            Order::Desc => self.backward(&open, overlaps, &mut left, results),
        }
    }

    fn forward(
        &mut self,
        open: &OpenBatch,
        overlaps: bool,
        left: &mut usize,
        results: &mut Results,
    ) -> Result<(), Stopped> {
        let mut block = mem::take(&mut self.block);
        let mut read = || -> io::Result<Result<(), Stopped>> {
            let mut lines = open.lines()?;
            loop {
                lines.next_lines(&mut block)?;
                if block.is_empty() || *left == 0 {
                    return self.corrupt(open, lines.corrupt_bytes());
                }
                if self.time.is_none() && self.evaluator.is_none() {
                    if *left != usize::MAX {
                        *left = left.saturating_sub(memchr::memchr_iter(b'\n', &block).count());
                    }
                    if results.push_block(mem::take(&mut block)).is_err() {
                        return Ok(Err(Stopped));
                    }
                    continue;
                }
                for line in lines_of(&block) {
                    if let Err(stopped) = self.line(line, overlaps, left, results) {
                        return Ok(Err(stopped));
                    }
                }
            }
        };
        let done = read().unwrap_or_else(|error| {
            self.incomplete.skip(format!("{}: {error}", open.name));
            Ok(())
        });
        self.block = block;
        done
    }

    /// Prints the last line first.
    fn backward(
        &mut self,
        open: &OpenBatch,
        overlaps: bool,
        left: &mut usize,
        results: &mut Results,
    ) -> Result<(), Stopped> {
        // All lines before this offset are still to be printed.
        let mut end = u64::MAX;
        loop {
            let (start, blocks) = match tail(open, end) {
                Ok(tail) => tail,
                Err((error, start, blocks)) => {
                    self.incomplete.skip(format!("{}: {error}", open.name));
                    (start, blocks)
                }
            };
            for block in blocks.iter().rev() {
                let ends = memchr::memrchr_iter(b'\n', &block[..block.len().saturating_sub(1)]);
                let mut line_end = block.len();
                for start in ends.map(|newline| newline + 1).chain([0]) {
                    if start < line_end {
                        self.line(&block[start..line_end], overlaps, left, results)?;
                    }
                    line_end = start;
                    if *left == 0 {
                        return Ok(());
                    }
                }
            }
            if start == 0 {
                return Ok(());
            }
            end = start;
        }
    }

    fn corrupt(&self, open: &OpenBatch, bytes: usize) -> io::Result<Result<(), Stopped>> {
        if bytes > 0 {
            self.incomplete.skip(format!("{}: {bytes} corrupt bytes", open.name));
        }
        Ok(Ok(()))
    }

    /// Handles one line, which ends with a line break.
    fn line(&mut self, line: &[u8], overlaps: bool, left: &mut usize, results: &mut Results) -> Result<(), Stopped> {
        if *left == 0 {
            return Ok(());
        }
        let report = &line[..line.len() - 1];
        if let Some((time, found)) = &mut self.time {
            let time = time.first(report, found).and_then(time_of_value);
            if !time.map_or(overlaps, |time| self.query.range.contains(time)) {
                return Ok(());
            }
        }
        let Some(evaluator) = &mut self.evaluator else {
            *left -= 1;
            return results.push(line);
        };
        let done = evaluator.run(report, |verdict| {
            let pushed = match verdict {
                Verdict::Keep => results.push(line),
                Verdict::Value(value) => results.push(value).and_then(|()| results.push(b"\n")),
            };
            *left -= 1;
            match pushed {
                Ok(()) if *left == 0 => ControlFlow::Break(Ok(())),
                Ok(()) => ControlFlow::Continue(()),
                Err(stopped) => ControlFlow::Break(Err(stopped)),
            }
        });
        match done {
            Ok(ControlFlow::Continue(())) => Ok(()),
            Ok(ControlFlow::Break(done)) => done,
            Err(message) => {
                self.incomplete.fail(message);
                Ok(())
            }
        }
    }
}

/// The last lines before the offset `end` that fit [`REVERSED_BYTES`], and the offset at which they start. An offset
/// counts the bytes of all lines before it.
#[allow(clippy::type_complexity, reason = "the parts are the result after an error, too")]
fn tail(open: &OpenBatch, end: u64) -> Result<(u64, VecDeque<Vec<u8>>), (io::Error, u64, VecDeque<Vec<u8>>)> {
    let (mut offset, mut kept_bytes, mut blocks) = (0, 0, VecDeque::new());
    let mut read = || -> io::Result<()> {
        let mut lines = open.lines()?;
        while offset < end {
            let mut block = Vec::new();
            lines.next_lines(&mut block)?;
            if block.is_empty() {
                return Ok(());
            }
            block.truncate(usize::try_from(end - offset).unwrap_or(usize::MAX).min(block.len()));
            offset += block.len() as u64;
            kept_bytes += block.len();
            blocks.push_back(block);
            while kept_bytes > REVERSED_BYTES && blocks.len() > 1 {
                kept_bytes -= blocks.pop_front().map_or(0, |block: Vec<u8>| block.len());
            }
        }
        Ok(())
    };
    let read = read();
    let start = offset - kept_bytes as u64;
    match read {
        Ok(()) => Ok((start, blocks)),
        Err(error) => Err((error, start, blocks)),
    }
}

/// Passes what the filter makes of a line to `each`: the line without its line break, or other values. A report for which
/// the filter fails is left out.
///
/// # Errors
/// Errors of `each`.
pub fn run_line(
    evaluator: Option<&mut Evaluator>,
    line: &[u8],
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let report = &line[..line.len() - 1];
    let Some(evaluator) = evaluator else { return each(report) };
    let done = evaluator.run(report, |verdict| {
        let done = match verdict {
            Verdict::Keep => each(report),
            Verdict::Value(value) => each(value),
        };
        done.map_or_else(|error| ControlFlow::Break(error), |()| ControlFlow::Continue(()))
    });
    match done {
        Ok(ControlFlow::Break(error)) => Err(error),
        Ok(ControlFlow::Continue(())) | Err(_) => Ok(()),
    }
}

/// The lines of a block, each with its line break.
pub fn lines_of(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memchr::memchr_iter(b'\n', block).map(move |newline| {
        let line = &block[start..=newline];
        start = newline + 1;
        line
    })
}
