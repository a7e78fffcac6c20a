//! Statistics of all reports on disk.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use jiff::Timestamp;

use super::{BatchTime, Options, Stats};
use crate::query::filter::{Evaluator, Filter};
use crate::query::incomplete::Incomplete;
use crate::query::reports::{Progress, ReportTime, lines_of};
use crate::query::scan;
use crate::store::{OpenBatch, Store, StoredBatch};

/// Memory of the statistics of all batches together.
const TOTAL_BYTES: usize = 40 << 20;

/// Memory of the statistics of one batch. Each thread has one batch, and as many as one per thread wait to be merged.
/// Not a share of the memory for each thread, so that the result does not depend on the number of threads.
const BATCH_BYTES: usize = 8 << 20;

/// Computes the statistics of all reports that match `filter`. Calls `progress` after each batch.
///
/// # Errors
/// If the data directory cannot be listed. Files that cannot be read are skipped, see `incomplete`.
pub fn run(
    store: &Store,
    options: &Options,
    time: &ReportTime,
    filter: Option<&Filter>,
    incomplete: &Incomplete,
    progress: &(dyn Fn(Progress) + Sync),
) -> io::Result<Stats> {
    let batches = store.stored_batches(time.last_start(&options.range).map(Into::into))?;
    let (batches_total, batches_done) = (batches.len(), AtomicUsize::new(0));
    let finished: Mutex<HashMap<usize, Stats>> = Mutex::default();
    let mut total = Stats::new(options.clone(), TOTAL_BYTES);
    scan::in_order(
        batches.into_iter().enumerate(),
        usize::MAX,
        || Worker { options, incomplete, evaluator: filter.map(Filter::evaluator), block: Vec::new() },
        |worker, (index, batch), results| {
            let stats = worker.batch(store, &batch);
            // Relaxed: the number is only displayed.
            progress(Progress { done: batches_done.fetch_add(1, Ordering::Relaxed) + 1, total: batches_total });
            finished.lock().unwrap_or_else(PoisonError::into_inner).insert(index, stats);
            // The result that is passed in order is the index of the batch.
            results.push(&index.to_ne_bytes())
        },
        |indexes| {
            for index in indexes.as_chunks().0 {
                let index = usize::from_ne_bytes(*index);
                let stats = finished.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
                total.merge(stats.expect("the batch is finished"));
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    Ok(total)
}

/// One thread.
struct Worker<'a> {
    options: &'a Options,
    incomplete: &'a Incomplete,
    evaluator: Option<Evaluator>,
    block: Vec<u8>,
}

impl Worker<'_> {
    /// The statistics of one batch. Skips what cannot be read.
    fn batch(&mut self, store: &Store, batch: &StoredBatch) -> Stats {
        let mut stats = Stats::new(self.options.clone(), BATCH_BYTES);
        let since = self.options.range.since;
        if since.is_some_and(|since| store.ended_before(batch, since.into())) {
            return stats;
        }
        match store.open_batch(batch) {
            Ok(Some(open)) => {
                let first = batch.id().first();
                if let Err(error) = self.read(&open, first, &mut stats) {
                    self.incomplete.skip(format!("{}: {error}", open.name));
                }
            }
            Ok(None) => {}
            Err(error) => self.incomplete.skip(error.to_string()),
        }
        stats
    }

    fn read(&mut self, open: &OpenBatch, first: SystemTime, stats: &mut Stats) -> io::Result<()> {
        let range = self.options.range;
        let time = Timestamp::try_from(first).unwrap_or(Timestamp::UNIX_EPOCH);
        let batch = BatchTime { time, is_in_range: range.overlaps(first, open.last) };
        let mut block = mem::take(&mut self.block);
        let mut lines = open.lines()?;
        loop {
            lines.next_lines(&mut block)?;
            if block.is_empty() {
                break;
            }
            for line in lines_of(&block) {
                stats.add(&line[..line.len() - 1], batch, |report| self.matches(report));
            }
        }
        self.block = block;
        match lines.corrupt_bytes() {
            0 => Ok(()),
            bytes => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{bytes} corrupt bytes"))),
        }
    }

    fn matches(&mut self, report: &[u8]) -> bool {
        let Some(evaluator) = &mut self.evaluator else { return true };
        match evaluator.run(report, |_| ControlFlow::Break(())) {
            Ok(flow) => flow.is_break(),
            Err(message) => {
                self.incomplete.fail(message);
                false
            }
        }
    }
}
