//! Work on many batches with several threads, with results in the order of the batches.
//!
//! Each batch has a queue for its results. A thread whose queue is full waits until the batches before it are done. So
//! the memory is limited, however many batches there are and however slow the reader of the results is.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Size of a block of results that is passed on.
const BLOCK_BYTES: usize = 256 << 10;

/// Results that may wait, for all batches together. Enough for one usual batch per thread on a small machine.
const WAITING_BYTES: usize = 24 << 20;

/// Stack of a thread. Filters may be recursive.
const STACK_BYTES: usize = 16 << 20;

/// The results of one batch.
#[derive(Debug)]
pub(super) struct Results {
    block: Vec<u8>,
    is_stopped: Arc<AtomicBool>,
    queue: SyncSender<Vec<u8>>,
}

/// Nobody needs further results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped;

impl Results {
    /// Whether nobody needs further results. For work that may have no results for a while.
    pub(super) fn is_stopped(&self) -> bool {
        // Relaxed: no other data depends on it.
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Adds bytes. Waits if too many results wait already.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.block.extend_from_slice(bytes);
        if self.block.len() < BLOCK_BYTES { Ok(()) } else { self.flush() }
    }

    /// Adds a block without a copy.
    pub(super) fn push_block(&mut self, block: Vec<u8>) -> Result<(), Stopped> {
        self.flush()?;
        self.queue.send(block).map_err(|_| Stopped)
    }

    /// Makes the bytes that were added so far available to the consumer.
    pub(super) fn flush(&mut self) -> Result<(), Stopped> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = mem::replace(&mut self.block, Vec::with_capacity(BLOCK_BYTES));
        self.queue.send(block).map_err(|_| Stopped)
    }
}

/// Maximum number of threads. Each one has a decoder and blocks in memory.
const MAX_THREADS: usize = 8;

/// The number of threads for this many jobs.
fn threads(jobs: usize) -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_THREADS).min(jobs).max(1)
}

/// Calls `process` for each of `jobs`, on at most `max_threads` threads, each with the state that `worker` returns. Passes the results
/// to `consume` in the order of the jobs, until it breaks.
///
/// # Errors
/// Errors of `consume`, or if no thread can be started.
pub(super) fn in_order<J: Send, W>(
    jobs: impl ExactSizeIterator<Item = J>,
    max_threads: usize,
    worker: impl Fn() -> W + Sync,
    process: impl Fn(&mut W, J, &mut Results) -> Result<(), Stopped> + Sync,
    mut consume: impl FnMut(&[u8]) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    let threads = threads(jobs.len()).min(max_threads);
    let waiting_blocks = (WAITING_BYTES / BLOCK_BYTES / (threads + 1)).max(2);
    let (queue, queued) = mpsc::channel::<(J, SyncSender<Vec<u8>>)>();
    let queued = Mutex::new(queued);
    let next = || queued.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
    let is_stopped = Arc::new(AtomicBool::new(false));
    let run = || {
        let mut state = worker();
        while let Some((job, queue)) = next() {
            let mut results = Results { block: Vec::new(), is_stopped: Arc::clone(&is_stopped), queue };
            if results.is_stopped() {
                return;
            }
            // An error means that the consumer has stopped. Then the queue of jobs ends, too.
            if process(&mut state, job, &mut results).and_then(|()| results.flush()).is_err() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        let _stop = StopAtEnd(&is_stopped);
        // Dropped at the end of this closure, before the scope waits for the threads.
        let queue = queue;
        for index in 0..threads {
            let builder = thread::Builder::new().name("query".to_owned()).stack_size(STACK_BYTES);
            match builder.spawn_scoped(scope, run) {
                Ok(_) => {}
                // Fewer threads do the same work.
                Err(_) if index > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let mut jobs = jobs.fuse();
        let mut in_progress: VecDeque<Receiver<Vec<u8>>> = VecDeque::new();
        loop {
            while in_progress.len() <= threads
                && let Some(job) = jobs.next()
            {
                let (results, receiver) = mpsc::sync_channel(waiting_blocks);
                if queue.send((job, results)).is_err() {
                    break; // all threads have panicked, and the scope reports it
                }
                in_progress.push_back(receiver);
            }
            let Some(first) = in_progress.pop_front() else { return Ok(()) };
            for block in first {
                if consume(&block)?.is_break() {
                    return Ok(());
                }
            }
        }
    })
}

/// Tells the threads to stop when the consumer returns, for any reason.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        // Relaxed: see `Results::is_stopped`.
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_jobs() {
        let mut seen = Vec::new();
        let process = |count: &mut usize, job: usize, results: &mut Results| {
            *count += 1;
            // Long results for some jobs, none for others.
            for part in 0..(job * 7) % 40 {
                results.push(format!("{job} {part} {}\n", "x".repeat(50_000)).as_bytes())?;
            }
            Ok(())
        };
        in_order(
            0..50,
            usize::MAX,
            || 0,
            process,
            |block| {
                seen.extend_from_slice(block);
                Ok(ControlFlow::Continue(()))
            },
        )
        .unwrap();
        let lines = std::str::from_utf8(&seen).unwrap().lines();
        let seen: Vec<(usize, usize)> = lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .map(|words| (words[0].parse().unwrap(), words[1].parse().unwrap()))
            .collect();
        let expected: Vec<_> = (0..50).flat_map(|job| (0..(job * 7) % 40).map(move |part| (job, part))).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn endless_results_end_when_the_consumer_stops_or_fails() {
        let endless = |_: &mut (), _: usize, results: &mut Results| loop {
            results.push(b"more\n")?;
        };
        in_order(0..1_000_000, 2, || (), endless, |_| Ok(ControlFlow::Break(()))).unwrap();
        let failed = in_order(0..10, usize::MAX, || (), endless, |_| Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
