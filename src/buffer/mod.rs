//! The reports in memory: appended by many threads without a lock, swapped out batch by batch for the flush task.
//!
//! ```text
//!   pool ──lease──► active ──full, or old──► sealed ──published──► (last Arc dropped) ──► pool
//!   Free            Active                   Sealed   Published                           Free
//! ```
//!
//! What threads do to each other within a batch is model-checked: see `cursor` and `leader`. The swap of one batch
//! for another is not, because arc-swap and crossbeam-queue don't run under loom: that is left to real threads, in the
//! tests below.

mod batch;
mod commit;
mod cursor;
mod leader;
mod segment;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::sync::Unparker;
use serde::Deserialize;

pub use self::batch::Batch;
use self::batch::Pool;
pub use self::leader::NotKept;
use crate::report::Reports;
use crate::store::Journals;

/// When a report is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// When it is in the batch. A crash loses it.
    Memory,
    /// When it is written to the batch's journal. It survives whatever the kernel survives.
    Journal,
    /// When that is on disk, too. It survives a power cut.
    Disk,
}

/// How the memory is divided up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Batches in all: one is active, the others are free or wait to be flushed. At least 2.
    pub batches: usize,
    /// Segments in a batch. At least 1.
    pub shards: usize,
    /// Bytes of a segment: the reports of one request, with their line breaks, may take no more.
    pub segment_bytes: usize,
}

/// Reports on their way from the request threads to the flush task, in a fixed amount of memory.
#[derive(Debug)]
pub struct Buffer {
    active: ArcSwap<Batch>,
    sealed: ArrayQueue<Arc<Batch>>,
    pool: Arc<Pool>,
    disk_full: AtomicBool,
    /// Journals of batches that have given up their memory, and their lengths. Locked once for a batch, if at all.
    spilled: Mutex<Vec<(PathBuf, u64)>>,
    spill_bytes: u64,
    segment_bytes: usize,
}

/// Where the appended reports of one request are. It keeps the batch's memory from being used again.
#[derive(Debug)]
pub struct Ticket {
    /// The batch that holds them.
    pub batch: Arc<Batch>,
    /// The index of the segment within the batch.
    pub segment: usize,
    /// The offset behind the last one's line within the segment, in bytes.
    pub end: usize,
}

impl Ticket {
    /// Resolves when the reports are kept as [`Ack`] promises.
    ///
    /// # Errors
    /// [`NotKept`]: they may be in a report file one day, or not.
    pub async fn kept(&self) -> Result<(), NotKept> {
        if !self.batch.is_journaled() {
            return Ok(());
        }
        leader::kept(&self.batch, self.segment, self.end).await
    }
}

/// Why the buffer takes no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// All batches wait to be flushed. There may be room in a moment: see [`Buffer::room`].
    #[error("all batches wait to be flushed")]
    Full,
    /// There is hardly room on the disk for the reports that are held already.
    #[error("the disk is full")]
    DiskFull,
    /// The server is stopping.
    #[error("the buffer is closed")]
    Closed,
}

impl Buffer {
    /// Allocates all the memory there will be. The kernel hands out its pages when they are first written to.
    ///
    /// # Panics
    /// When `shape` has fewer than two batches or no shard, or `journals` are not there just when `ack` needs them, one
    /// of them ready.
    #[must_use]
    pub fn new(shape: Shape, ack: Ack, journals: Option<Journals>, spill_bytes: u64) -> Self {
        assert!(shape.batches >= 2 && shape.shards >= 1, "{shape:?}");
        assert_eq!(ack == Ack::Memory, journals.is_none(), "{ack:?}");
        let pool = Pool::new(shape, ack, journals);
        let first = Batch::lease(&pool).expect("a new pool is full, and has a journal ready");
        Self {
            active: ArcSwap::new(first),
            sealed: ArrayQueue::new(shape.batches),
            pool,
            disk_full: AtomicBool::new(false),
            spilled: Mutex::default(),
            spill_bytes,
            segment_bytes: shape.segment_bytes,
        }
    }

    /// Appends the reports of one request to the active batch, all together; rotates when that is full.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is kept of them.
    ///
    /// # Panics
    /// When the lines are longer than a segment, which the length check of the server rules out.
    pub fn append(&self, reports: &Reports<'_>) -> Result<Ticket, Refused> {
        self.append_to(shard(), reports)
    }

    fn append_to(&self, shard: usize, reports: &Reports<'_>) -> Result<Ticket, Refused> {
        let lines = reports.as_bytes();
        assert!(lines.len() < self.segment_bytes, "{} bytes fit in no segment", lines.len());
        if self.is_disk_full() {
            return Err(Refused::DiskFull);
        }
        loop {
            // The guard is held for one append only: what it protects can't be recycled meanwhile.
            let batch = self.active.load();
            // Read when the batch is known: a thread that was held up must not make a batch look older than the one
            // before it, as the times of the first reports are what orders the files.
            let now_ns = self.pool.now_ns();
            if let Some((segment, end)) = batch.append(shard, lines, now_ns) {
                return Ok(Ticket { batch: Guard::into_inner(batch), segment, end });
            }
            if batch.is_closed() {
                return Err(Refused::Closed);
            }
            self.rotate(&batch)?;
        }
    }

    /// Resolves when there may be room again, or the buffer is closed. To miss nothing, `enable` it before an append
    /// that may be refused.
    pub fn room(&self) -> tokio::sync::futures::Notified<'_> {
        self.pool.room.notified()
    }

    /// Whether the next append would find room.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pool.can_lease() || !self.active.load().is_sealed()
    }

    /// Whether reports are refused because the disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        // Relaxed: it stands for itself.
        self.disk_full.load(Ordering::Relaxed)
    }

    /// Has reports refused because the disk is full, or taken again; returns what was so before.
    pub fn set_disk_full(&self, full: bool) -> bool {
        self.disk_full.swap(full, Ordering::Relaxed)
    }

    /// Names the thread to wake (by unparking it) when a batch has been sealed, or has given its memory back. The first
    /// call counts.
    pub fn wake(&self, flusher: Thread) {
        self.pool.flusher.get_or_init(|| flusher);
        // SeqCst: as in `Pool::wake_flusher`.
        fence(Ordering::SeqCst);
    }

    /// The sealed batch that has waited longest.
    #[must_use]
    pub fn next_sealed(&self) -> Option<Arc<Batch>> {
        self.sealed.pop()
    }

    /// Rotates if the first report of the active batch is `interval` old. Returns how long to wait before asking
    /// again, if not [woken](Self::wake) before: no report is kept longer than `interval` by a caller that does so.
    pub fn rotate_if_due(&self, interval: Duration) -> Duration {
        let batch = self.active.load();
        let Some((first_ns, _)) = batch.times_ns() else { return interval };
        let age = Duration::from_nanos(self.pool.now_ns().saturating_sub(first_ns));
        if age < interval {
            return interval - age;
        }
        match self.rotate(&batch) {
            Ok(()) => Duration::ZERO,
            // Somebody still holds a batch that has been flushed; its memory coming back wakes the caller.
            Err(_) => interval,
        }
    }

    /// Seals what is there and refuses every append from now on.
    pub fn close(&self) {
        loop {
            let batch = self.active.load();
            if batch.is_closed() || self.swap(&batch, Batch::closed(&self.pool)) {
                return;
            }
        }
    }

    /// Whether the buffer is closed and no batch is left to flush: every one has given its memory back.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.active.load().is_closed() && self.pool.is_complete()
    }

    /// Makes journals for batches to come, if there are to be any and too few are ready.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prepare_journals(&self) -> io::Result<()> {
        let Some(journals) = self.pool.journals.as_ref().filter(|journals| journals.is_short()) else { return Ok(()) };
        journals.prepare()?;
        // A batch that is due waits for one, too.
        self.pool.wake();
        Ok(())
    }

    /// Makes a free batch the active one in the place of `full`, unless another thread has done so.
    fn rotate(&self, full: &Arc<Batch>) -> Result<(), Refused> {
        match Batch::lease(&self.pool) {
            Some(fresh) => {
                // A batch that lost the race is dropped, and its memory is back in the pool.
                self.swap(full, fresh);
                Ok(())
            }
            None if !Arc::ptr_eq(full, &self.active.load()) => Ok(()),
            None if self.pool.has_memory() || !self.spill() => Err(Refused::Full),
            // Its memory is there, or will be as soon as the last who holds it lets go.
            None => Ok(()),
        }
    }

    /// Has the sealed batch that has waited longest give up its memory, if it and the bound allow that; its journal is
    /// an orphan from then on.
    fn spill(&self) -> bool {
        if self.pool.journals.is_none() || self.spill_bytes == 0 {
            return false;
        }
        let Some(batch) = self.sealed.pop() else { return false };
        if let Some((path, bytes)) = batch.spillable() {
            let mut spilled = self.spilled.lock().expect("nobody panics with it");
            if spilled.iter().map(|(_, bytes)| bytes).sum::<u64>() + bytes <= self.spill_bytes {
                tracing::info!(journal = %path.display(), bytes, "spilled");
                spilled.push((path.to_owned(), bytes));
                // The batch is dropped, and its journal unlocked, before anybody can find the path forgotten.
                drop(batch);
                self.pool.upkeep.get().into_iter().for_each(|(_, recoverer)| recoverer.unpark());
                return true;
            }
        }
        // Out of its turn: the names of the files, not their making, tell the order of batches.
        let pushed = self.sealed.push(batch);
        debug_assert!(pushed.is_ok(), "it had a place");
        self.pool.wake_flusher();
        false
    }

    /// Forgets the spilled journals that have become report files; says whether any are left.
    pub fn forget_recovered(&self) -> bool {
        let mut spilled = self.spilled.lock().expect("nobody panics with it");
        let before = spilled.len();
        spilled.retain(|(path, _)| path.exists());
        if spilled.len() < before {
            self.pool.wake();
        }
        !spilled.is_empty()
    }

    /// Removes the journals that were made for batches to come.
    pub fn discard_journals(&self) {
        self.pool.journals.iter().for_each(|journals| while journals.take().is_some() {});
    }

    /// Names those to wake when journals are wanted, and when something was spilled. The first call counts.
    pub fn wake_upkeep(&self, keeper: Thread, recoverer: Unparker) {
        self.pool.upkeep.get_or_init(|| (keeper, recoverer));
    }

    /// Swaps `fresh` in for `old`, which is sealed and queued for the flush task; `false` when `old` was no longer
    /// the active one. The caller holds `old`, so its address can't have come back as another batch.
    fn swap(&self, old: &Arc<Batch>, fresh: Arc<Batch>) -> bool {
        let active = self.active.compare_and_swap(old, fresh);
        if !Arc::ptr_eq(old, &active) {
            return false;
        }
        // Sealed after the swap: a writer that is refused finds another batch.
        old.seal();
        let pushed = self.sealed.push(Guard::into_inner(active));
        debug_assert!(pushed.is_ok(), "the queue has a place for each batch");
        self.pool.wake();
        true
    }
}

/// The calling thread's number: the index of the segment that it tries first, modulo the shards.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: any number that no other thread has will do.
    thread_local!(static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    SHARD.with(|shard| *shard)
}

#[cfg(all(test, not(netwatch_loom)))]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::fs;
    use std::path::Path;
    use std::sync::OnceLock;
    use std::thread;
    use std::time::SystemTime;

    use proptest::prelude::*;
    use proptest::test_runner::{RngAlgorithm, TestRng};
    use tokio::task::{AbortHandle, JoinHandle};

    use super::*;

    impl Buffer {
        fn rotate_now(&self) {
            assert_eq!(self.rotate_if_due(Duration::ZERO), Duration::ZERO);
        }
    }

    fn buffer(batches: usize, shards: usize, segment_bytes: usize) -> Buffer {
        Buffer::new(Shape { batches, shards, segment_bytes }, Ack::Memory, None, 0)
    }

    /// The `n`th report of a writer, of about `len` bytes.
    fn line(writer: usize, n: usize, len: usize) -> String {
        format!("{{\"writer\":{writer},\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(len))
    }

    fn text(batch: &Batch) -> String {
        let lines = loop {
            match batch.lines() {
                Some(lines) => break lines,
                None => thread::yield_now(),
            }
        };
        String::from_utf8(lines.concat()).unwrap()
    }

    /// What the journal of `batch` holds.
    fn journal_text(data_dir: &Path, batch: &Batch) -> String {
        let mut bytes = fs::read(data_dir.join("journal").join(batch.stem().journal())).unwrap();
        bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
        String::from_utf8(bytes).unwrap()
    }

    /// Checks that `files` hold, of each writer, the reports 0..count in their order and nothing else.
    fn assert_each_once_in_order(files: &[String], counts: &HashMap<usize, usize>) {
        let mut next: HashMap<usize, usize> = HashMap::new();
        for line in files.iter().flat_map(|file| file.lines()) {
            let report: serde_json::Value = serde_json::from_str(line).unwrap();
            let next = next.entry(report["writer"].as_u64().unwrap() as usize).or_default();
            assert_eq!(report["n"], *next, "{line}");
            *next += 1;
        }
        assert_eq!(&next, counts);
    }

    #[test]
    fn a_full_batch_is_swapped_and_its_memory_comes_back_with_the_last_reference() {
        let buffer = buffer(2, 1, 8);
        let report = Reports::check(b"{\"a\":1}").unwrap();
        let ticket = buffer.append(&report).unwrap();
        buffer.append(&report).unwrap();
        assert_eq!(buffer.append(&report).unwrap_err(), Refused::Full);
        assert!(!buffer.has_room());
        let sealed = buffer.next_sealed().unwrap();
        assert_eq!(text(&sealed), "{\"a\":1}\n");
        drop(sealed);
        assert_eq!(buffer.append(&report).unwrap_err(), Refused::Full, "the ticket still holds the batch");
        drop(ticket);
        assert!(buffer.has_room());
        buffer.append(&report).unwrap();
    }

    #[tokio::test]
    async fn whoever_waits_for_room_is_woken_when_a_batch_gives_its_memory_back() {
        let buffer = buffer(2, 1, 3);
        let report = Reports::check(b"{}").unwrap();
        buffer.append(&report).unwrap();
        buffer.append(&report).unwrap();
        let mut room = std::pin::pin!(buffer.room());
        room.as_mut().enable();
        assert_eq!(buffer.append(&report).unwrap_err(), Refused::Full);
        drop(buffer.next_sealed().unwrap());
        room.await;
        buffer.append(&report).unwrap();
    }

    #[tokio::test]
    async fn whoever_waits_for_room_is_woken_when_another_thread_rotates_or_closes() {
        let buffer = buffer(3, 1, 3);
        for end in [Buffer::rotate_now, Buffer::close] {
            buffer.append(&Reports::check(b"{}").unwrap()).unwrap();
            let mut room = std::pin::pin!(buffer.room());
            room.as_mut().enable();
            end(&buffer);
            room.await;
        }
    }

    #[tokio::test]
    #[cfg_attr(miri, ignore = "Miri knows no such files")]
    async fn a_burst_spills_to_the_journals_within_the_bound_and_nothing_is_lost_with_the_memory() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(dir.path()).unwrap();
        let shape = Shape { batches: 2, shards: 2, segment_bytes: 1_000 };
        let journals = store.journals(2_000).unwrap();
        let buffer = Buffer::new(shape, Ack::Journal, Some(journals), 10_000);
        let mut accepted = 0;
        loop {
            // Nobody flushes, and journals are always ready.
            buffer.prepare_journals().unwrap();
            let line = line(0, accepted, 100);
            match buffer.append(&Reports::check(line.as_bytes()).unwrap()) {
                Ok(ticket) => ticket.kept().await.unwrap(),
                Err(refused) => break assert_eq!(refused, Refused::Full),
            }
            accepted += 1;
        }
        let spilled: u64 = buffer.spilled.lock().unwrap().iter().map(|(_, bytes)| bytes).sum();
        assert!((8_000..=10_000).contains(&spilled), "{spilled}");

        let compression = crate::store::Compression { level: 1, threads: 1 };
        let recovered = crate::store::recover::recover(&store, compression, &mut Default::default()).unwrap();
        assert!(!buffer.forget_recovered(), "none is left");
        let held: usize = std::iter::from_fn(|| buffer.next_sealed()).map(|batch| text(&batch).lines().count()).sum();
        buffer.close();
        let last = text(&buffer.next_sealed().unwrap()).lines().count();
        assert_eq!(recovered.reports + held + last, accepted);
        assert!(recovered.journals >= 4, "{recovered:?}");
    }

    #[tokio::test]
    #[cfg_attr(miri, ignore = "Miri knows no such files")]
    async fn what_a_late_request_spills_after_the_close_is_in_a_report_file_when_the_server_has_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(crate::store::Store::open(dir.path()).unwrap());
        let shape = Shape { batches: 2, shards: 1, segment_bytes: 3 };
        let journals = store.journals(3).unwrap();
        let buffer = Arc::new(Buffer::new(shape, Ack::Journal, Some(journals), 3));
        let report = Reports::check(b"{}").unwrap();
        for _ in 0..2 {
            buffer.append(&report).unwrap().kept().await.unwrap();
        }
        let compression = crate::store::Compression { level: 1, threads: 1 };
        let flusher = crate::flush::Flusher {
            buffer: Arc::clone(&buffer),
            store: Arc::clone(&store),
            compression,
            interval: Duration::ZERO,
        };
        let upkeep = crate::upkeep::Upkeep { buffer: Arc::clone(&buffer), store, min_free_bytes: 0, compression };

        // It has found this batch full, and no memory for another one; that is as far as it gets before the close.
        let full = buffer.active.load_full();
        assert!(!buffer.pool.has_memory());
        buffer.close();
        upkeep.recover_spilled_after(|| {
            assert!(buffer.spill());
            flusher.flush(&buffer.next_sealed().unwrap());
            assert!(!buffer.is_drained(), "it holds the batch that was full");
            drop(full);
            assert!(buffer.is_drained());
        });
        buffer.discard_journals();
        assert_eq!(fs::read_dir(dir.path().join("journal")).unwrap().count(), 0, "no journal is left");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "two report files beside that directory");
    }

    /// Many tasks append and wait, and one in three may go away at any moment. All others are told that their reports
    /// are kept, and whatever anybody was told so is in its batch and in the journals.
    async fn crowd(ack: Ack) {
        const TASKS: usize = 300;
        const REPORTS: usize = 8;
        let seed = std::env::var("CROWD_SEED").map_or_else(|_| getrandom::u32().unwrap(), |seed| seed.parse().unwrap());
        println!("ack={ack:?} CROWD_SEED={seed}");
        let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed.to_le_bytes(); 8].concat());

        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(dir.path()).unwrap();
        let shape = Shape { batches: 50, shards: 3, segment_bytes: 4_000 };
        let buffer = Arc::new(Buffer::new(shape, ack, Some(store.journals(12_000).unwrap()), 0));
        let appended = Arc::new(AtomicUsize::new(0));
        let kept = Arc::new(Mutex::new(HashSet::new()));
        let handles = Arc::new(OnceLock::<Vec<AbortHandle>>::new());
        let mut tasks: Vec<JoinHandle<()>> = Vec::new();
        for task in 0..TASKS {
            let (buffer, appended, kept) = (Arc::clone(&buffer), Arc::clone(&appended), Arc::clone(&kept));
            let handles = Arc::clone(&handles);
            // Whom it sends away, after each report: then most of the others are waiting.
            let victims: [Option<usize>; REPORTS] =
                std::array::from_fn(|_| random.random_bool(0.1).then(|| random.random_range(0..TASKS / 3) * 3));
            tasks.push(tokio::spawn(async move {
                while handles.get().is_none() {
                    tokio::task::yield_now().await;
                }
                for (n, victim) in victims.into_iter().enumerate() {
                    let line = line(task, n, 17 * task % 97);
                    let ticket = loop {
                        match buffer.append(&Reports::check(line.as_bytes()).unwrap()) {
                            Ok(ticket) => break ticket,
                            // Short of a journal.
                            Err(refused) => assert_eq!(refused, Refused::Full),
                        }
                        buffer.prepare_journals().unwrap();
                        tokio::task::yield_now().await;
                    };
                    appended.fetch_add(1, Ordering::Relaxed);
                    victim.into_iter().for_each(|victim| handles.wait()[victim].abort());
                    ticket.kept().await.unwrap();
                    kept.lock().unwrap().insert(line);
                }
            }));
        }
        handles.set(tasks.iter().map(JoinHandle::abort_handle).collect()).unwrap();
        for (task, handle) in tasks.into_iter().enumerate() {
            // Far longer than it ever takes: whoever sleeps by then is not going to be woken.
            match tokio::time::timeout(Duration::from_secs(60), handle).await.expect("nobody is left asleep") {
                Ok(()) => {}
                Err(error) => assert!(error.is_cancelled() && task % 3 == 0, "{error}"),
            }
        }

        buffer.close();
        let batches: Vec<_> = std::iter::from_fn(|| buffer.next_sealed()).collect();
        assert!(batches.len() > 5, "{}", batches.len());
        let kept = kept.lock().unwrap();
        assert!(kept.len() < appended.load(Ordering::Relaxed), "some went away while they waited");
        let held: Vec<_> = batches.iter().map(|batch| text(batch)).collect();
        let journaled: Vec<_> = batches.iter().map(|batch| journal_text(dir.path(), batch)).collect();
        for texts in [held, journaled] {
            let lines: HashSet<_> = texts.iter().flat_map(|text| text.lines()).collect();
            assert_eq!(lines.len(), texts.iter().flat_map(|text| text.lines()).count(), "each once");
            let lost: Vec<_> = kept.iter().filter(|line| !lines.contains(line.as_str())).collect();
            assert!(lost.is_empty(), "{lost:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    #[cfg_attr(miri, ignore = "Miri knows no such files")]
    async fn whoever_goes_away_nobody_is_left_waiting_for_a_journal() {
        crowd(Ack::Journal).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    #[cfg_attr(miri, ignore = "Miri knows no such files")]
    async fn whoever_goes_away_nobody_is_left_waiting_for_a_sync() {
        crowd(Ack::Disk).await;
    }

    #[tokio::test]
    #[cfg_attr(miri, ignore = "Miri knows no such files")]
    async fn when_a_journal_cannot_be_written_all_who_wait_are_told_and_the_next_batch_takes_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(dir.path()).unwrap();
        let shape = Shape { batches: 2, shards: 1, segment_bytes: 64 };
        let buffer = Buffer::new(shape, Ack::Journal, Some(store.journals(64).unwrap()), 0);
        let report = Reports::check(b"{}").unwrap();
        let tickets = [(); 3].map(|()| buffer.append(&report).unwrap());
        let taken = dir.path().join("journal").join(tickets[0].batch.stem().journal());
        fs::write(&taken, "").unwrap();
        let [first, second, third] = &tickets;
        let outcomes = tokio::join!(first.kept(), second.kept());
        assert_eq!(outcomes, (Err(NotKept), Err(NotKept)));
        fs::remove_file(&taken).unwrap();
        assert_eq!(third.kept().await, Err(NotKept), "a later write would say nothing of the first");
        let next = buffer.append(&report).unwrap();
        assert!(!Arc::ptr_eq(&next.batch, &first.batch));
        assert_eq!(next.kept().await, Ok(()));
    }

    #[test]
    fn a_batch_is_due_when_its_first_report_is_old_enough_and_an_empty_one_never() {
        let buffer = buffer(2, 2, 64);
        assert_eq!(buffer.rotate_if_due(Duration::ZERO), Duration::ZERO);
        assert!(buffer.next_sealed().is_none(), "nothing to flush");
        buffer.append(&Reports::check(b"{}").unwrap()).unwrap();
        let wait = buffer.rotate_if_due(Duration::from_secs(3600));
        assert!(wait > Duration::from_secs(3500) && wait <= Duration::from_secs(3600), "{wait:?}");
        assert!(buffer.next_sealed().is_none());
        assert_eq!(buffer.rotate_if_due(Duration::ZERO), Duration::ZERO);
        assert_eq!(text(&buffer.next_sealed().unwrap()), "{}\n");
    }

    #[test]
    fn a_closed_buffer_refuses_and_is_drained_when_all_batches_are_back() {
        let buffer = buffer(3, 1, 64);
        let report = Reports::check(b"{}").unwrap();
        buffer.append(&report).unwrap();
        buffer.close();
        buffer.close();
        assert_eq!(buffer.append(&report).unwrap_err(), Refused::Closed);
        assert!(!buffer.is_drained());
        assert_eq!(text(&buffer.next_sealed().unwrap()), "{}\n");
        assert!(buffer.is_drained());
    }

    #[test]
    fn a_flusher_that_waits_for_the_last_reference_is_woken_when_it_goes() {
        let buffer = buffer(2, 1, 64);
        let ticket = buffer.append(&Reports::check(b"{}").unwrap()).unwrap();
        thread::scope(|scope| {
            let flusher = scope.spawn(|| {
                buffer.wake(thread::current());
                while !buffer.is_drained() {
                    if buffer.next_sealed().is_none() {
                        thread::park();
                    }
                }
            });
            buffer.close();
            drop(ticket);
            flusher.join().unwrap();
        });
    }

    #[test]
    fn one_writer_fills_every_segment_before_a_batch_is_full() {
        let buffer = buffer(2, 4, 9);
        let report = Reports::check(b"{\"a\":10}").unwrap();
        for _ in 0..4 {
            buffer.append(&report).unwrap();
        }
        assert!(buffer.next_sealed().is_none());
        buffer.append(&report).unwrap();
        assert_eq!(text(&buffer.next_sealed().unwrap()).lines().count(), 4);
    }

    #[test]
    fn the_times_of_a_batch_are_those_of_its_first_and_last_report() {
        let buffer = buffer(2, 2, 64);
        let report = Reports::check(b"{}").unwrap();
        let before = SystemTime::now();
        let ticket = buffer.append_to(1, &report).unwrap();
        buffer.append_to(0, &report).unwrap();
        let (first, last) = ticket.batch.times().unwrap();
        let slack = Duration::from_secs(1); // two clocks are read, one after the other
        assert!(before - slack <= first && first < last && last <= SystemTime::now() + slack);
    }

    #[test]
    fn many_threads_and_a_flusher_that_is_too_slow_keep_every_report_once_and_in_order() {
        crowded(&buffer(3, 3, 2_000));
    }

    #[test]
    fn threads_that_rotate_at_the_same_time_keep_every_report_once_and_in_order() {
        // One or a few reports fill a batch, and there are always free ones.
        crowded(&buffer(64, 1, 150));
    }

    fn crowded(buffer: &Buffer) {
        const WRITERS: usize = 4;
        const REPORTS: usize = if cfg!(miri) { 20 } else { 5_000 };
        let files = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    scope.spawn(move || {
                        for n in 0..REPORTS {
                            let line = line(writer, n, n % 97);
                            let report = Reports::check(line.as_bytes()).unwrap();
                            while let Err(refused) = buffer.append(&report) {
                                assert_eq!(refused, Refused::Full);
                                thread::yield_now();
                            }
                        }
                    })
                })
                .collect();
            let flusher = scope.spawn(|| {
                let mut files = Vec::new();
                while !buffer.is_drained() {
                    match buffer.next_sealed() {
                        Some(batch) => files.push((text(&batch), batch.times_ns())),
                        None => thread::yield_now(),
                    }
                }
                // As their names do. They may be queued in another order, when one thread rotates after the other.
                files.sort_by_key(|(_, times)| *times);
                files.into_iter().map(|(text, _)| text).collect::<Vec<_>>()
            });
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            buffer.close();
            flusher.join().unwrap()
        });
        assert!(files.len() > REPORTS / 50, "{}", files.len());
        assert_each_once_in_order(&files, &(0..WRITERS).map(|writer| (writer, REPORTS)).collect());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append { writer: usize, len: usize, hold: bool },
        Rotate,
        Flush,
        DropTickets,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..5_usize, 0..150_usize, proptest::bool::weighted(0.1))
                .prop_map(|(writer, len, hold)| Step::Append { writer, len, hold }),
            1 => Just(Step::Rotate),
            2 => Just(Step::Flush),
            1 => Just(Step::DropTickets),
        ]
    }

    proptest! {
        #[test]
        #[cfg_attr(miri, ignore = "too slow")]
        fn any_sequence_keeps_every_accepted_report_once_in_each_writers_order(
            steps in proptest::collection::vec(step(), 1..400),
            batches in 2..5_usize,
            shards in 1..5_usize,
        ) {
            let buffer = buffer(batches, shards, 256);
            let (mut files, mut tickets, mut counts) = (Vec::new(), Vec::new(), HashMap::new());
            for step in steps {
                match step {
                    Step::Append { writer, len, hold } => {
                        let count = counts.get(&writer).copied().unwrap_or(0);
                        let line = line(writer, count, len);
                        match buffer.append_to(writer, &Reports::check(line.as_bytes()).unwrap()) {
                            Ok(ticket) => {
                                counts.insert(writer, count + 1);
                                tickets.extend(hold.then_some(ticket));
                            }
                            Err(refused) => prop_assert_eq!(refused, Refused::Full),
                        }
                    }
                    Step::Rotate => {
                        buffer.rotate_if_due(Duration::ZERO);
                    }
                    Step::Flush => files.extend(buffer.next_sealed().map(|batch| text(&batch))),
                    Step::DropTickets => tickets.clear(),
                }
            }
            buffer.close();
            files.extend(std::iter::from_fn(|| buffer.next_sealed()).map(|batch| text(&batch)));
            prop_assert_eq!(buffer.is_drained(), tickets.is_empty());
            tickets.clear();
            prop_assert!(buffer.is_drained());
            assert_each_once_in_order(&files, &counts);
        }
    }
}
