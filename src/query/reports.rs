//! A query for reports.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::{SignedDuration, Timestamp};

use super::filter::{Evaluator, Filter, Verdict};
use super::incomplete::Incomplete;
use super::output::Output;
use super::path::Path;
use super::range::{TimeRange, time_of_value};
use super::scan::{self, Results, Stopped};
use crate::store::{OpenBatch, Store, StoredBatch};

/// Lines that are in memory to print a batch in reverse. A longer batch is read several times.
const REVERSED_BYTES: usize = if cfg!(test) { 300 << 10 } else { 12 << 20 };

/// The zstd level of reports that are compressed for a client.
const FRAME_LEVEL: i32 = 1;

/// Threads that print batches in reverse.
const MAX_REVERSING_THREADS: usize = 4;

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
    /// Print zstd frames: report files as they are, and other batches compressed. Only for queries of
    /// [everything](Self::is_everything).
    pub as_frames: bool,
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

impl ReportTime {
    /// The path of the member.
    #[must_use]
    pub fn path(&self) -> Path {
        match self {
            Self::Received => "._received_at".parse().expect("it is a valid path"),
            Self::Member(path) => path.clone(),
        }
    }

    /// The latest first report of a batch that may contain a report of this range.
    pub(super) fn last_start(&self, range: &TimeRange) -> Option<Timestamp> {
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
        Self {
            range: TimeRange::default(),
            time: ReportTime::Received,
            order: Order::Asc,
            limit: None,
            filter: None,
            as_frames: false,
        }
    }

    /// Whether the output is all reports in their order.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        !self.range.is_limited() && self.order == Order::Asc && self.limit.is_none() && self.filter.is_none()
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
        // In reverse, each thread has a whole batch in memory.
        let threads = if self.order == Order::Desc { MAX_REVERSING_THREADS } else { usize::MAX };
        scan::in_order(
            batches.into_iter(),
            threads,
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
    time: Option<Path>,
    block: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(query: &'a Query, incomplete: &'a Incomplete) -> Self {
        let time = query.range.is_limited().then(|| query.time.path());
        Self { query, incomplete, evaluator: query.filter.as_ref().map(Filter::evaluator), time, block: Vec::new() }
    }

    fn batch(&mut self, store: &Store, batch: &StoredBatch, results: &mut Results) -> Result<(), Stopped> {
        let since = self.query.range.since;
        if since.is_some_and(|since| store.ended_before(batch, since.into())) {
            return Ok(());
        }
        let open = match store.open_batch(batch) {
            Ok(Some(open)) => open,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.incomplete.skip(error.to_string());
                return Ok(());
            }
        };
        if self.query.as_frames {
            return self.frames(&open, results);
        }
        // For reports without a time of their own.
        let overlaps = self.query.range.overlaps(batch.id().first(), open.last);
        let mut left = self.query.limit.unwrap_or(usize::MAX);
        match self.query.order {
            Order::Asc => self.forward(&open, overlaps, &mut left, results),
            Order::Desc => self.backward(&open, overlaps, &mut left, results),
        }
    }

    /// Prints a report file as it is, and anything else compressed.
    fn frames(&mut self, open: &OpenBatch, results: &mut Results) -> Result<(), Stopped> {
        match open.whole_frame() {
            Ok(Some(frame)) => return results.push_block(frame),
            Ok(None) => {}
            Err(error) => {
                self.incomplete.skip(format!("{}: {error}", open.name));
                return Ok(());
            }
        }
        self.for_each_block(open, results, |_, block, results| {
            // A frame for each block: all that was printed is complete if the next block cannot be read.
            match zstd::bulk::compress(block, FRAME_LEVEL) {
                Ok(frame) => Ok(results.push_block(frame)),
                Err(error) => Err(error),
            }
        })
    }

    /// Passes the blocks of a batch to `each`. Skips what cannot be read.
    fn for_each_block(
        &mut self,
        open: &OpenBatch,
        results: &mut Results,
        mut each: impl FnMut(&mut Self, &mut Vec<u8>, &mut Results) -> io::Result<Result<(), Stopped>>,
    ) -> Result<(), Stopped> {
        let mut block = mem::take(&mut self.block);
        let mut read = || -> io::Result<Result<(), Stopped>> {
            let mut lines = open.lines()?;
            loop {
                lines.next_lines(&mut block)?;
                if results.is_stopped() {
                    return Ok(Err(Stopped));
                }
                if block.is_empty() {
                    self.report_corrupt(open, lines.corrupt_bytes());
                    return Ok(Ok(()));
                }
                if let Err(stopped) = each(self, &mut block, results)? {
                    return Ok(Err(stopped));
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

    fn forward(
        &mut self,
        open: &OpenBatch,
        overlaps: bool,
        left: &mut usize,
        results: &mut Results,
    ) -> Result<(), Stopped> {
        self.for_each_block(open, results, |this, block, results| {
            if *left == 0 {
                // No batch after this one is needed, either.
                return Ok(results.flush().and(Err(Stopped)));
            }
            if this.time.is_none() && this.evaluator.is_none() {
                if *left != usize::MAX {
                    *left = left.saturating_sub(memchr::memchr_iter(b'\n', block).count());
                }
                return Ok(results.push_block(mem::take(block)));
            }
            Ok(lines_of(block).try_for_each(|line| this.line(line, overlaps, left, results)))
        })
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
            let Tail { start, blocks, corrupt_bytes, error } = tail(open, end, results);
            if let Some(error) = error {
                self.incomplete.skip(format!("{}: {error}", open.name));
            }
            if end == u64::MAX {
                self.report_corrupt(open, corrupt_bytes);
            }
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

    fn report_corrupt(&self, open: &OpenBatch, bytes: usize) {
        if bytes > 0 {
            self.incomplete.skip(format!("{}: {bytes} corrupt bytes", open.name));
        }
    }

    /// Handles one line, which ends with a line break.
    fn line(&mut self, line: &[u8], overlaps: bool, left: &mut usize, results: &mut Results) -> Result<(), Stopped> {
        if *left == 0 {
            return Ok(());
        }
        let report = &line[..line.len() - 1];
        if let Some(path) = &self.time {
            let time = path.first(report).and_then(time_of_value);
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

/// The last lines before an offset. An offset counts the bytes of all lines before it.
struct Tail {
    /// Where `blocks` start.
    start: u64,
    blocks: VecDeque<Vec<u8>>,
    corrupt_bytes: usize,
    /// Why there may be more lines that cannot be read.
    error: Option<io::Error>,
}

/// The last lines before the offset `end` that fit [`REVERSED_BYTES`].
fn tail(open: &OpenBatch, end: u64, results: &Results) -> Tail {
    let mut tail = Tail { start: 0, blocks: VecDeque::new(), corrupt_bytes: 0, error: None };
    let (mut offset, mut kept_bytes) = (0, 0);
    let mut read = || -> io::Result<()> {
        let mut lines = open.lines()?;
        while offset < end && !results.is_stopped() {
            let mut block = Vec::new();
            lines.next_lines(&mut block)?;
            tail.corrupt_bytes = lines.corrupt_bytes();
            if block.is_empty() {
                return Ok(());
            }
            block.truncate(usize::try_from(end - offset).unwrap_or(usize::MAX).min(block.len()));
            offset += block.len() as u64;
            kept_bytes += block.len();
            tail.blocks.push_back(block);
            while kept_bytes > REVERSED_BYTES && tail.blocks.len() > 1 {
                kept_bytes -= tail.blocks.pop_front().map_or(0, |block: Vec<u8>| block.len());
            }
        }
        Ok(())
    };
    tail.error = read().err();
    tail.start = offset - kept_bytes as u64;
    tail
}

/// Passes what the filter makes of a line to `each`: the line without its line break, or other values. A report for which
/// the filter fails is left out, see `incomplete`.
///
/// # Errors
/// Errors of `each`.
pub fn run_line(
    evaluator: Option<&mut Evaluator>,
    line: &[u8],
    incomplete: &Incomplete,
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let report = &line[..line.len() - 1];
    let Some(evaluator) = evaluator else { return each(report) };
    let done = evaluator.run(report, |verdict| {
        let done = match verdict {
            Verdict::Keep => each(report),
            Verdict::Value(value) => each(value),
        };
        done.map_or_else(ControlFlow::Break, |()| ControlFlow::Continue(()))
    });
    match done {
        Ok(ControlFlow::Break(error)) => Err(error),
        Ok(ControlFlow::Continue(())) => Ok(()),
        Err(message) => {
            incomplete.fail(message);
            Ok(())
        }
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

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::query::Format;
    use crate::store::{BatchId, Compression};

    /// A data directory with batches of these many reports, one batch per minute. Each report has a number.
    fn store(batches: &[usize]) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &std::sync::Arc::default()).unwrap();
        let mut number = 0;
        for (minute, reports) in batches.iter().enumerate() {
            let first = SystemTime::from(start()) + Duration::from_secs(60 * minute as u64);
            let lines: String = (0..*reports)
                .map(|_| {
                    number += 1;
                    format!("{{\"n\":{number},\"at\":{},\"pad\":\"{}\"}}\n", number * 1000, "x".repeat(number % 500))
                })
                .collect();
            let id = BatchId::new(first);
            let last = first + Duration::from_secs(30);
            let compression = Compression { level: 1, threads: 1 };
            let mut staged = store.stage(id, &[lines.as_bytes()], last, compression).unwrap();
            store.publish(&mut staged, compression).unwrap();
        }
        (dir, store)
    }

    fn start() -> Timestamp {
        "2026-11-22T15:00:00Z".parse().unwrap()
    }

    fn after(seconds: i64) -> Option<Timestamp> {
        Some(start() + SignedDuration::from_secs(seconds))
    }

    fn run(store: &Store, query: &Query) -> (Vec<usize>, Vec<String>) {
        let incomplete = Incomplete::default();
        let mut text = Vec::new();
        let mut output = Output::new(Format::Ndjson, &mut text, query.limit);
        query.run(store, &mut output, &incomplete, &|_| {}).unwrap();
        let text = String::from_utf8(text).unwrap();
        let number = |line: &str| match line.parse() {
            Ok(number) => number,
            Err(_) => serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64().unwrap() as usize,
        };
        (text.lines().map(number).collect(), incomplete.lines())
    }

    #[test]
    fn the_order_is_that_of_the_reports_or_the_reverse() {
        let (_dir, store) = store(&[1, 5000, 3, 200]);
        let all: Vec<usize> = (1..=5204).collect();
        let reversed: Vec<usize> = all.iter().rev().copied().collect();
        // The second batch is larger than what is in memory at once.
        const { assert!(5000 * 250 > 3 * REVERSED_BYTES) };
        assert!(run(&store, &Query::all()) == (all, vec![]));
        assert!(run(&store, &Query { order: Order::Desc, ..Query::all() }) == (reversed.clone(), vec![]));
        for limit in [0, 1, 200, 204, 3000, 5204, 9000] {
            let latest = Query { order: Order::Desc, limit: Some(limit), ..Query::all() };
            assert!(run(&store, &latest).0 == reversed[..limit.min(5204)], "{limit}");
            let oldest = Query { limit: Some(limit), ..Query::all() };
            assert!(run(&store, &oldest).0 == (1..=limit.min(5204)).collect::<Vec<_>>(), "{limit}");
        }
        let filter = Some(Filter::parse("select(.n % 1000 == 0) | .n").unwrap());
        let thousands = Query { order: Order::Desc, filter, ..Query::all() };
        assert_eq!(run(&store, &thousands).0, [5000, 4000, 3000, 2000, 1000]);
    }

    #[test]
    fn frames_are_the_files_as_they_are_and_a_damaged_file_damages_no_other() {
        let (dir, store) = store(&[10, 3000, 10]);
        let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.is_file());
        files.sort();
        let query = Query { as_frames: true, ..Query::all() };
        let frames = |incomplete: &Incomplete| {
            let mut frames = Vec::new();
            query.run(&store, &mut Output::new(Format::Ndjson, &mut frames, None), incomplete, &|_| {}).unwrap();
            frames
        };
        let all: Vec<u8> = files.iter().flat_map(|path| fs::read(path).unwrap()).collect();
        assert!(frames(&Incomplete::default()) == all);
        let bytes = fs::read(&files[1]).unwrap();
        for damaged in [&bytes[..bytes.len() / 2], &b"no zstd"[..]] {
            fs::write(&files[1], damaged).unwrap();
            let incomplete = Incomplete::default();
            let lines = zstd::decode_all(&frames(&incomplete)[..]).unwrap();
            assert_eq!(incomplete.lines().len(), 1);
            let numbers = lines_of(&lines).map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap());
            let numbers: Vec<u64> = numbers.map(|report| report["n"].as_u64().unwrap()).collect();
            assert!(numbers.starts_with(&[1, 2]) && numbers.ends_with(&[3019, 3020]));
        }
    }

    #[test]
    fn a_range_selects_by_the_time_of_the_report_or_else_of_its_batch() {
        let (_dir, store) = store(&[10, 10, 10]);
        let range = |since, until| Query { range: TimeRange { since, until }, ..Query::all() };
        assert_eq!(run(&store, &range(after(31), None)).0, (11..=30).collect::<Vec<_>>());
        assert_eq!(run(&store, &range(after(70), None)).0, (11..=30).collect::<Vec<_>>(), "a part of the second");
        assert_eq!(run(&store, &range(None, after(59))).0, (1..=10).collect::<Vec<_>>());
        assert_eq!(run(&store, &range(after(31), after(59))).0, [0; 0]);
        // `at` is in milliseconds since 1970, long before the batches.
        let time = ReportTime::Member(".at".parse().unwrap());
        let (since, until) = (Timestamp::from_second(5).ok(), Timestamp::from_second(12).ok());
        let own = Query { time, ..range(since, until) };
        assert_eq!(run(&store, &own).0, (5..=12).collect::<Vec<_>>());
    }

    #[test]
    fn files_that_cannot_be_read_are_named_and_the_others_are_read() {
        let (dir, store) = store(&[10, 10, 10]);
        let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.is_file());
        files.sort();
        let bytes = fs::read(&files[1]).unwrap();
        for damaged in
            [&bytes[..bytes.len() - 1], b"", b"no zstd", &[&bytes[..60], &[bytes[60] ^ 1], &bytes[61..]].concat()]
        {
            fs::write(&files[1], damaged).unwrap();
            for order in [Order::Asc, Order::Desc] {
                let (numbers, incomplete) = run(&store, &Query { order, ..Query::all() });
                let others: Vec<_> = numbers.iter().filter(|number| !(11..=20).contains(*number)).collect();
                assert_eq!(others.len(), 20);
                assert_eq!(incomplete.len(), 1, "{incomplete:?}");
                assert!(incomplete[0].contains(files[1].file_name().unwrap().to_str().unwrap()), "{incomplete:?}");
            }
        }
        fs::write(&files[1], zstd::encode_all(&b"{\"n\":1}\n{\"n\":"[..], 1).unwrap()).unwrap();
        assert!(run(&store, &Query::all()).1[0].contains("the last line has no line break"));
        let failing = Query { filter: Some(Filter::parse(".n.x").unwrap()), ..Query::all() };
        let (_, incomplete) = run(&store, &failing);
        assert!(incomplete[1].starts_with("21 reports are left out, because the filter failed: "), "{incomplete:?}");
    }
}
