//! The flush task: sealed batch → report file → recycled batch.
//!
//! One thread of its own, because all it does blocks. It and the compression threads that zstd starts from it run at a
//! lower priority than the threads that answer requests.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crate::buffer::{Batch, Buffer};
use crate::store::{Compression, Name, Store};

/// How much nicer than the request threads, which have 0. Enough to stand back when a core is short, and not so much
/// that the flush would fall behind for good: at 5 it still gets a quarter of a core that it shares, and it needs about
/// a sixth of what the requests need.
const NICE: i32 = 5;

/// Time between two tries to publish the same batch: doubled from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Turns sealed batches into report files.
#[derive(Debug)]
pub struct Flusher {
    /// Where the batches come from.
    pub buffer: Arc<Buffer>,
    /// Where the files go.
    pub store: Store,
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
        // On Linux this is the thread's own priority, and threads that it starts inherit it.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::warn!(%error, "the flush task runs at normal priority");
        }
        self.buffer.wake(thread::current());
        while !self.buffer.is_drained() {
            let wait = match self.buffer.next_sealed() {
                Some(batch) => {
                    self.flush(&batch);
                    continue;
                }
                None => self.buffer.rotate_if_due(self.interval),
            };
            thread::park_timeout(wait);
        }
    }

    /// Publishes a sealed batch, however often that has to be tried.
    fn flush(&self, batch: &Batch) {
        let lines = loop {
            match batch.lines() {
                Some(lines) => break lines,
                // A late writer: it has reserved and is about to commit.
                None => thread::yield_now(),
            }
        };
        let Some((first, last)) = self.buffer.times(batch) else { return };
        let reports: usize = lines.iter().map(|lines| memchr::memchr_iter(b'\n', lines).count()).sum();
        let bytes_in: usize = lines.iter().map(|lines| lines.len()).sum();
        let mut name = Name::new(first);
        let mut retry = RETRY_FIRST;
        loop {
            let started = Instant::now();
            match self.publish(&name, &lines, last) {
                Ok(bytes_out) => {
                    let ms = started.elapsed().as_millis() as u64;
                    tracing::info!(file = %name, reports, bytes_in, bytes_out, ms, "published");
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => name = Name::new(first),
                Err(error) => {
                    let retry_ms = retry.as_millis() as u64;
                    tracing::error!(file = %name, reports, %error, retry_ms, "can't publish; the batch is kept");
                    // Not parked: a batch that is sealed meanwhile must not cut the wait short.
                    thread::sleep(retry);
                    retry = (2 * retry).min(RETRY_LAST);
                }
            }
        }
    }

    /// A panic is an error like any other here: it must not take the batch with it.
    fn publish(&self, name: &Name, lines: &[&[u8]], last: SystemTime) -> io::Result<u64> {
        panic::catch_unwind(AssertUnwindSafe(|| self.store.publish(name, lines, last, self.compression)))
            .unwrap_or_else(|_| Err(io::Error::other("a panic while publishing")))
    }
}
