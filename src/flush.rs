//! The flush thread: sealed batch → report file.
//!
//! It is a thread because all of its work blocks. It runs at a lower priority than the threads that handle requests,
//! and so do the compression threads that zstd starts from it.

use std::collections::HashMap;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::buffer::{Batch, Buffer};
use crate::maintenance::lower_priority;
use crate::store::{BatchId, Compression, Pending, Store};

/// Pause before a batch is retried. It doubles from the first value to the last.
const RETRY_FIRST: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });
const RETRY_LAST: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 5000 });

/// Turns sealed batches into report files.
#[derive(Debug)]
pub struct Flusher {
    /// The source of batches.
    pub buffer: Arc<Buffer>,
    /// The data directory.
    pub store: Arc<Store>,
    /// How report files are compressed.
    pub compression: Compression,
    /// Maximum age of the first report of a batch.
    pub interval: Duration,
    retries: HashMap<BatchId, Retry>,
}

/// When a batch that failed is tried again.
#[derive(Debug)]
struct Retry {
    due: Instant,
    pause: Duration,
}

impl Flusher {
    /// A flusher without failed batches.
    #[must_use]
    pub fn new(buffer: Arc<Buffer>, store: Arc<Store>, compression: Compression, interval: Duration) -> Self {
        Self { buffer, store, compression, interval, retries: HashMap::new() }
    }

    /// Starts the flush thread. It ends when the buffer is [closed](Buffer::close) and every batch is flushed or
    /// spilled.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn spawn(self) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("flush".to_owned()).spawn(move || self.run())
    }

    fn run(mut self) {
        lower_priority();
        self.buffer.set_flusher(thread::current());
        while !self.buffer.is_drained() {
            // A panic counts as an error. Without this thread, nothing would be flushed.
            match panic::catch_unwind(AssertUnwindSafe(|| self.flush_next())) {
                Ok(wait) => thread::park_timeout(wait),
                Err(_) => thread::sleep(RETRY_LAST),
            }
        }
    }

    /// Flushes the next sealed batch, or seals the active batch if that is due. Returns how long to wait for an event.
    fn flush_next(&mut self) -> Duration {
        let wait = match self.next_due() {
            Ok(batch) => {
                // Keep the batch if the flush panics.
                if panic::catch_unwind(AssertUnwindSafe(|| self.flush_or_retry(&batch))).is_err() {
                    self.retry_later(&batch);
                }
                return Duration::ZERO;
            }
            Err(wait) => wait,
        };
        self.buffer.rotate_if_due(self.interval).min(wait)
    }

    /// The sealed batch that has waited longest, except for batches whose pause has not ended. So a batch that fails
    /// does not block the batches behind it. If there is none, returns how long to wait for one.
    fn next_due(&mut self) -> Result<Arc<Batch>, Duration> {
        let now = Instant::now();
        // The queue also contains the failed batches, so that they can be spilled.
        self.retries.retain(|_, retry| retry.due + 2 * RETRY_LAST > now);
        let mut wait = Duration::MAX;
        for _ in 0..self.buffer.sealed_len() {
            let Some(batch) = self.buffer.next_sealed() else { break };
            match self.retries.get(&batch.id()).map(|retry| retry.due.saturating_duration_since(now)) {
                Some(pause) if !pause.is_zero() => {
                    wait = wait.min(pause);
                    self.buffer.return_sealed(batch);
                }
                _ => return Ok(batch),
            }
        }
        Err(wait)
    }

    /// Flushes a sealed batch. If that fails, puts it back into the queue.
    pub(crate) fn flush_or_retry(&mut self, batch: &Arc<Batch>) {
        // Fewer resources for a retry: threads may be what the system could not provide.
        let threads = if self.retries.contains_key(&batch.id()) { 1 } else { self.compression.threads };
        let flushed = self.flush(batch, Compression { threads, ..self.compression });
        self.store.metrics().count_flush(batch.trigger(), flushed.is_ok());
        match flushed {
            Ok(()) => {
                self.retries.remove(&batch.id());
                batch.settle();
            }
            Err(error) => {
                self.store.health().report(&error, "can't write a report file; retrying");
                self.retry_later(batch);
            }
        }
    }

    /// Puts a batch that failed back into the queue, and sets the pause before it is tried again.
    fn retry_later(&mut self, batch: &Arc<Batch>) {
        let pause = self.retries.get(&batch.id()).map_or(RETRY_FIRST, |retry| (2 * retry.pause).min(RETRY_LAST));
        self.retries.insert(batch.id(), Retry { due: Instant::now() + pause, pause });
        self.buffer.return_sealed(Arc::clone(batch));
    }

    /// Stages and publishes a sealed batch.
    ///
    /// # Errors
    /// If the batch could not be staged. Maintenance retries what fails later.
    fn flush(&self, batch: &Batch, compression: Compression) -> io::Result<()> {
        let lines = loop {
            match batch.lines() {
                Some(lines) => break lines,
                // A late writer has reserved bytes and is about to commit them.
                None => thread::yield_now(),
            }
        };
        let Some((_, last)) = batch.times() else { return Ok(()) };
        let bytes_in: usize = lines.iter().map(|lines| lines.len()).sum();
        let started = Instant::now();
        let mut staged = self.store.stage(batch.id(), &lines, last, compression)?;
        let published = batch.remove_journal().and_then(|()| self.store.publish(&mut staged, compression));
        let (file, reports, bytes_out) = (staged.id.report_file(), staged.reports, staged.bytes);
        let metrics = self.store.metrics();
        metrics.flush_ns.observe_duration(started.elapsed());
        metrics.file_bytes_raw.add(bytes_in as u64);
        metrics.file_bytes_zstd.add(bytes_out);
        match published {
            Ok(()) => {
                let ms = started.elapsed().as_millis() as u64;
                tracing::info!(file, reports, bytes_in, bytes_out, ms, "published");
            }
            Err(error) => {
                self.store.health().report(&error, "can't publish a staged report file; retrying");
                self.buffer.add_staged(Pending::staged(staged, batch.journal_handle()));
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake, Waker};

    use super::*;
    use crate::buffer::BufferLayout;
    use crate::config::Ack;
    use crate::report::Reports;

    const COMPRESSION: Compression = Compression { level: 1, threads: 1 };

    fn report_files(dir: &std::path::Path) -> usize {
        fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file()).count()
    }

    /// Panics when it is first woken, as tokio does when the system refuses to wake a thread.
    #[derive(Default)]
    struct Panics(AtomicBool);

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            assert!(self.0.swap(true, Ordering::Relaxed), "cannot be woken");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri does not support these file operations")]
    fn a_panic_between_two_batches_does_not_end_the_flush_thread() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), &Arc::default()).unwrap());
        let layout = BufferLayout { batches: 2, shards: 1, chunk_bytes: 8 };
        let buffer = Arc::new(Buffer::new(layout, Ack::Memory, None, 0, &Arc::default()));
        buffer.append(&Reports::check(b"{}").unwrap()).unwrap();

        // The flush thread wakes it when it seals the batch.
        let panics = Arc::new(Panics::default());
        let mut capacity = std::pin::pin!(buffer.capacity());
        assert!(capacity.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&panics)))).is_pending());
        let flusher = Flusher::new(Arc::clone(&buffer), store, COMPRESSION, Duration::ZERO).spawn().unwrap();
        while !panics.0.load(Ordering::Relaxed) {
            assert!(!flusher.is_finished());
            thread::yield_now();
        }
        buffer.close();
        flusher.join().unwrap();
        assert!(buffer.is_drained());
        assert_eq!(report_files(dir.path()), 1);
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri does not support these file operations")]
    fn a_batch_that_fails_does_not_block_the_batches_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path(), &Arc::default()).unwrap());
        let layout = BufferLayout { batches: 3, shards: 1, chunk_bytes: 3 };
        let buffer = Arc::new(Buffer::new(layout, Ack::Memory, None, 0, &Arc::default()));
        let report = Reports::check(b"{}").unwrap();
        let bad = buffer.append(&report).unwrap().batch;
        let good = buffer.append(&report).unwrap().batch.id();
        // A directory in place of the staged file stops the first batch, and no other.
        let obstacle = dir.path().join("tmp").join(bad.id().report_file());
        fs::create_dir(&obstacle).unwrap();
        drop(bad);
        buffer.close();
        let mut flusher = Flusher::new(Arc::clone(&buffer), store, COMPRESSION, Duration::ZERO);
        let deadline = Instant::now() + Duration::from_secs(60);
        flusher.flush_next();
        // The first batch has failed. It is first in the queue again, and its pause does not end during this test.
        let [second, first] = [(); 2].map(|()| buffer.next_sealed().unwrap());
        flusher.retries.get_mut(&first.id()).unwrap().due = deadline;
        [first, second].into_iter().for_each(|batch| buffer.return_sealed(batch));
        let next = flusher.next_due().unwrap();
        assert_eq!(next.id(), good);
        flusher.flush_or_retry(&next);
        drop(next);
        assert_eq!(report_files(dir.path()), 1);
        assert!(!buffer.is_drained(), "the first batch is still there");
        flusher.retries.clear();
        fs::remove_dir(&obstacle).unwrap();
        while !buffer.is_drained() {
            assert!(Instant::now() < deadline);
            flusher.flush_next();
        }
        assert_eq!(report_files(dir.path()), 2);
    }
}
