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
use crate::store::recover::recover;
use crate::store::{Compression, Stem, Store};

/// How much nicer than the request threads, which have 0. Enough to stand back when a core is short, and not so much
/// that the flush would fall behind for good: at 5 it still gets a quarter of a core that it shares, and it needs about
/// a sixth of what the requests need.
const NICE: i32 = 5;

/// Pause between two tries of the same thing: doubled from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// The longest time between two looks at the disk.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Pause between two looks for orphan journals.
const RECOVER_INTERVAL: Duration = Duration::from_secs(10);

/// Turns sealed batches into report files.
#[derive(Debug)]
pub struct Flusher {
    /// Where the batches come from.
    pub buffer: Arc<Buffer>,
    /// Where the files go.
    pub store: Arc<Store>,
    /// How to compress them.
    pub compression: Compression,
    /// With fewer bytes free on the disk, new reports are refused.
    pub min_free_bytes: u64,
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
            self.watch_disk();
            let prepared = self.buffer.prepare_journals();
            let wait = match self.buffer.next_sealed() {
                Some(batch) => {
                    // A panic is an error like any other here: it must not take the batch with it.
                    while panic::catch_unwind(AssertUnwindSafe(|| self.flush(&batch))).is_err() {
                        thread::sleep(RETRY_LAST);
                    }
                    continue;
                }
                None => self.buffer.rotate_if_due(self.interval),
            };
            if let Err(error) = prepared {
                tracing::error!(%error, "can't make a journal; without one there will be no room");
            }
            thread::park_timeout(wait.min(LOOK_INTERVAL));
        }
    }

    /// Has new reports refused while the disk is nearly full, so that there is room for those that are held.
    fn watch_disk(&self) {
        let full = match self.store.free_bytes() {
            Ok(free_bytes) => free_bytes < self.min_free_bytes,
            Err(error) => {
                tracing::error!(%error, "can't tell how full the disk is");
                false
            }
        };
        if self.buffer.set_disk_full(full) != full {
            match full {
                true => tracing::error!(min_free_bytes = self.min_free_bytes, "the disk is full; reports are refused"),
                false => tracing::info!("the disk has room again; reports are taken"),
            }
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
        let Some((first, last)) = batch.times() else { return };
        let reports: usize = lines.iter().map(|lines| memchr::memchr_iter(b'\n', lines).count()).sum();
        let bytes_in: usize = lines.iter().map(|lines| lines.len()).sum();
        let started = Instant::now();
        let mut next = Some(batch.stem());
        let (stem, bytes_out) = keep_trying("can't publish; the batch is kept", || {
            let stem = next.unwrap_or_else(|| Stem::new(first));
            // Another one for each further try: the last may be taken.
            next = None;
            self.store.publish(&stem, &lines, last, self.compression).map(|bytes| (stem, bytes))
        });
        keep_trying("can't sync the directory; the batch is kept", || self.store.sync());
        batch.discard_journal();
        let ms = started.elapsed().as_millis() as u64;
        tracing::info!(file = stem.report_file(), reports, bytes_in, bytes_out, ms, "published");
    }
}

/// Lowers the priority of the calling thread, and of those that it starts from now on.
fn be_nice() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "files are written at normal priority");
    }
}

/// Recovers orphan journals in a thread of its own for as long as the process lives: at once, because the last run may
/// have left some, and then again and again, because other servers may share the directory.
///
/// # Errors
/// When no thread can be started.
pub fn spawn_recovery(store: Arc<Store>, compression: Compression) -> io::Result<()> {
    thread::Builder::new().name("recover".to_owned()).spawn(move || {
        be_nice();
        loop {
            if let Err(error) = recover(&store, compression) {
                tracing::error!(%error, "can't look for journals to recover");
            }
            thread::sleep(RECOVER_INTERVAL);
        }
    })?;
    Ok(())
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
