//! The flush task: sealed batch → report file → recycled batch.
//!
//! One thread of its own, because all it does blocks. It and the compression threads that zstd starts from it run at a
//! lower priority than the threads that answer requests.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::buffer::{Batch, Buffer};
use crate::store::{Compression, Store};
use crate::upkeep::be_nice;

/// Pause between two tries of the same thing: doubled from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });
const RETRY_LAST: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 5000 });

/// Turns sealed batches into report files.
#[derive(Debug)]
pub struct Flusher {
    /// Where the batches come from.
    pub buffer: Arc<Buffer>,
    /// Where the files go.
    pub store: Arc<Store>,
    /// How to compress them.
    pub compression: Compression,
    /// How old the first report of a batch may become before it is flushed.
    pub interval: Duration,
}

impl Flusher {
    /// Starts the flush task. It ends once the buffer is [closed](Buffer::close) and all of it is on disk.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn spawn(self) -> io::Result<JoinHandle<()>> {
        let thread = thread::Builder::new().name("flush".to_owned()).spawn(move || self.run())?;
        Ok(thread)
    }

    fn run(self) {
        be_nice();
        self.buffer.wake(thread::current());
        while !self.buffer.is_drained() {
            // A panic is an error like any other here: without this thread nothing would be flushed any more.
            match panic::catch_unwind(AssertUnwindSafe(|| self.flush_next())) {
                Ok(wait) => thread::park_timeout(wait),
                Err(_) => thread::sleep(RETRY_LAST),
            }
        }
    }

    /// Flushes the next sealed batch, or has the active one sealed if that is due. Returns how long to wait after that,
    /// if nothing happens before.
    fn flush_next(&self) -> Duration {
        let Some(batch) = self.buffer.next_sealed() else { return self.buffer.rotate_if_due(self.interval) };
        // Nor must a panic take the batch with it.
        while panic::catch_unwind(AssertUnwindSafe(|| self.flush(&batch))).is_err() {
            thread::sleep(RETRY_LAST);
        }
        Duration::ZERO
    }

    /// Publishes a sealed batch, however often that has to be tried.
    pub(crate) fn flush(&self, batch: &Batch) {
        let lines = loop {
            match batch.lines() {
                Some(lines) => break lines,
                // A late writer: it has reserved and is about to commit.
                None => thread::yield_now(),
            }
        };
        let Some((_, last)) = batch.times() else { return };
        let reports: usize = lines.iter().map(|lines| memchr::memchr_iter(b'\n', lines).count()).sum();
        let bytes_in: usize = lines.iter().map(|lines| lines.len()).sum();
        let started = Instant::now();
        let stem = batch.stem();
        let mut compression = self.compression;
        // Under one name, however often it takes: the journal has it, and recovery goes by it.
        let bytes_out = keep_trying("can't publish; the batch is kept", || {
            let tried = self.store.publish(&stem, &lines, last, compression);
            // Threads may be what was missing.
            compression.threads = 1;
            match tried {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.store.published(&stem, &lines),
                published => published,
            }
        });
        match self.store.sync() {
            Ok(()) => batch.discard_journal(),
            // Asking again might hide the error, but that is all that can be done without a journal. With one, it stays:
            // it will be found an orphan that has its report file, once the directory can be synced.
            Err(error) if batch.is_journaled() => {
                tracing::error!(file = stem.report_file(), %error, "can't sync the directory; the journal is kept");
            }
            Err(_) => keep_trying("can't sync the directory; the batch is kept", || self.store.sync()),
        }
        let ms = started.elapsed().as_millis() as u64;
        tracing::info!(file = stem.report_file(), reports, bytes_in, bytes_out, ms, "published");
    }
}

/// Tries until it works, with growing pauses.
fn keep_trying<T>(failed: &str, mut work: impl FnMut() -> io::Result<T>) -> T {
    let mut retry = RETRY_FIRST;
    loop {
        match work() {
            Ok(done) => return done,
            Err(error) => tracing::error!(%error, retry_ms = retry.as_millis() as u64, "{failed}"),
        }
        // Not parked: a batch that is sealed meanwhile must not cut the pause short.
        thread::sleep(retry);
        retry = (2 * retry).min(RETRY_LAST);
    }
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake, Waker};

    use super::*;
    use crate::buffer::{Ack, Shape};
    use crate::report::Reports;

    /// Panics the first time, as the runtime's own does when the system refuses to wake a thread.
    #[derive(Default)]
    struct Panics(AtomicBool);

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            assert!(self.0.swap(true, Ordering::Relaxed), "can't be woken");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri knows no such files")]
    fn a_panic_between_two_batches_is_not_the_end_of_all_files() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let buffer = Arc::new(Buffer::new(Shape { batches: 2, shards: 1, segment_bytes: 8 }, Ack::Memory, None, 0));
        buffer.append(&Reports::check(b"{}").unwrap()).unwrap();

        // Woken by the flush task when it has the batch sealed.
        let panics = Arc::new(Panics::default());
        let mut room = std::pin::pin!(buffer.room());
        assert!(room.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&panics)))).is_pending());
        let compression = Compression { level: 1, threads: 1 };
        let flusher = Flusher { buffer: Arc::clone(&buffer), store, compression, interval: Duration::ZERO };
        let flusher = flusher.spawn().unwrap();
        while !panics.0.load(Ordering::Relaxed) {
            assert!(!flusher.is_finished());
            thread::yield_now();
        }
        buffer.close();
        flusher.join().unwrap();
        assert!(buffer.is_drained());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "one report file");
    }
}
