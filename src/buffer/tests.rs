//! Tests of the buffer with real threads and tasks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
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

fn buffer(batches: usize, shards: usize, chunk_bytes: usize) -> Buffer {
    Buffer::new(BufferLayout { batches, shards, chunk_bytes }, Ack::Memory, None, 0, &Arc::default())
}

/// Report number `n` of a writer, with `len` bytes of padding.
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

/// A task that was never woken fails the test instead of blocking it.
async fn in_time<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("a task was never woken")
}

/// The lines in the journal of `batch`.
fn journal_text(data_dir: &Path, batch: &Batch) -> String {
    let mut bytes = fs::read(data_dir.join("journal").join(batch.id().journal())).unwrap();
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    String::from_utf8(bytes).unwrap()
}

/// Checks that `files` contain the reports 0..count of each writer exactly once, and nothing else.
fn assert_each_once(files: &[String], counts: &HashMap<usize, usize>) {
    let mut found: HashMap<usize, BTreeSet<u64>> = HashMap::new();
    for line in files.iter().flat_map(|file| file.lines()) {
        let report: serde_json::Value = serde_json::from_str(line).unwrap();
        let writer = report["writer"].as_u64().unwrap() as usize;
        assert!(found.entry(writer).or_default().insert(report["n"].as_u64().unwrap()), "stored twice: {line}");
    }
    let expected: HashMap<_, BTreeSet<_>> =
        counts.iter().map(|(writer, count)| (*writer, (0..*count as u64).collect())).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_memory_of_a_full_batch_is_free_when_the_last_reference_is_dropped() {
    let buffer = buffer(2, 1, 8);
    let report = Reports::check(b"{\"a\":1}").unwrap();
    let ticket = buffer.append(&report).unwrap();
    buffer.append(&report).unwrap();
    assert_eq!(buffer.append(&report).unwrap_err(), AppendError::Full);
    assert!(!buffer.has_capacity());
    let sealed = buffer.next_sealed().unwrap();
    assert_eq!(text(&sealed), "{\"a\":1}\n");
    drop(sealed);
    assert_eq!(buffer.append(&report).unwrap_err(), AppendError::Full, "the ticket holds the batch");
    drop(ticket);
    assert!(buffer.has_capacity());
    buffer.append(&report).unwrap();
}

#[tokio::test]
async fn a_task_that_waits_for_capacity_is_woken_when_memory_returns() {
    let buffer = buffer(2, 1, 3);
    let report = Reports::check(b"{}").unwrap();
    buffer.append(&report).unwrap();
    buffer.append(&report).unwrap();
    let mut capacity = std::pin::pin!(buffer.capacity());
    capacity.as_mut().enable();
    assert_eq!(buffer.append(&report).unwrap_err(), AppendError::Full);
    drop(buffer.next_sealed().unwrap());
    in_time(capacity).await;
    buffer.append(&report).unwrap();
}

#[tokio::test]
async fn a_task_that_waits_for_capacity_is_woken_by_a_rotation_and_by_a_close() {
    let buffer = buffer(3, 1, 3);
    for end in [Buffer::rotate_now, Buffer::close] {
        buffer.append(&Reports::check(b"{}").unwrap()).unwrap();
        let mut capacity = std::pin::pin!(buffer.capacity());
        capacity.as_mut().enable();
        end(&buffer);
        in_time(capacity).await;
    }
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn a_burst_spills_up_to_the_limit_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::store::Store::open(dir.path(), &Arc::default()).unwrap();
    let layout = BufferLayout { batches: 2, shards: 2, chunk_bytes: 1_000 };
    let journals = store.journals(2_000).unwrap();
    let buffer = Buffer::new(layout, Ack::Journal, Some(journals), 10_000, &Arc::default());
    buffer.spawn_committer().unwrap();
    let mut accepted = 0;
    loop {
        // Nothing is flushed, and a journal is always ready.
        buffer.prepare_journals().unwrap();
        let line = line(0, accepted, 100);
        match buffer.append(&Reports::check(line.as_bytes()).unwrap()) {
            Ok(ticket) => {
                ticket.durable().await.unwrap();
                accepted += 1;
            }
            Err(error) => {
                assert_eq!(error, AppendError::Full);
                if !(buffer.wants_spill() && buffer.spill()) {
                    break;
                }
            }
        }
    }
    let spilled = buffer.unpublished.spilled_bytes();
    assert!((8_000..=10_000).contains(&spilled), "{spilled}");

    let pending = buffer.unpublished();
    assert!(pending.len() >= 4, "{pending:?}");
    publish_pending(&store, &buffer);
    let published = reports_in(dir.path());
    let in_memory: usize = std::iter::from_fn(|| buffer.next_sealed()).map(|batch| text(&batch).lines().count()).sum();
    buffer.close();
    let last = text(&buffer.next_sealed().unwrap()).lines().count();
    assert_eq!(published + in_memory + last, accepted);
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn a_batch_that_a_late_request_spills_after_the_close_is_published_before_the_shutdown_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(crate::store::Store::open(dir.path(), &Arc::default()).unwrap());
    let layout = BufferLayout { batches: 2, shards: 1, chunk_bytes: 3 };
    let journals = store.journals(3).unwrap();
    let buffer = Arc::new(Buffer::new(layout, Ack::Journal, Some(journals), 3, &Arc::default()));
    buffer.spawn_committer().unwrap();
    let report = Reports::check(b"{}").unwrap();
    for _ in 0..2 {
        buffer.append(&report).unwrap().durable().await.unwrap();
    }
    let compression = crate::store::Compression { level: 1, threads: 1 };
    let mut flusher = crate::flush::Flusher::new(Arc::clone(&buffer), Arc::clone(&store), compression, Duration::ZERO);
    let maintenance = crate::maintenance::Maintenance {
        buffer: Arc::clone(&buffer),
        store,
        min_free_bytes: 0,
        retention: crate::store::Retention::default(),
        prune_on_full: false,
        compression,
    };

    // The late request finds this batch full and no free memory. Then the buffer is closed.
    let full = buffer.active.load_full();
    assert!(!buffer.pool.has_memory());
    buffer.close();
    maintenance.publish_pending_after(|| {
        assert!(buffer.spill());
        flusher.flush_or_retry(&buffer.next_sealed().unwrap());
        drop(full);
        assert!(buffer.is_drained());
    });
    buffer.discard_journals();
    for empty_dir in ["journal", "tmp"] {
        assert_eq!(fs::read_dir(dir.path().join(empty_dir)).unwrap().count(), 0, "{empty_dir}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "two report files and two directories");
}

/// Many tasks append and wait. A third of them may be aborted at any time. All others must be acknowledged. Every
/// acknowledged report must be in its batch and in the journals.
async fn append_from_tasks(ack: Ack) {
    const TASKS: usize = 300;
    const REPORTS: usize = 8;
    let seed = std::env::var("ABORT_SEED").map_or_else(|_| getrandom::u32().unwrap(), |seed| seed.parse().unwrap());
    println!("ack={ack:?} ABORT_SEED={seed}");
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed.to_le_bytes(); 8].concat());

    let dir = tempfile::tempdir().unwrap();
    let store = crate::store::Store::open(dir.path(), &Arc::default()).unwrap();
    let layout = BufferLayout { batches: 50, shards: 3, chunk_bytes: 4_000 };
    let buffer = Arc::new(Buffer::new(layout, ack, Some(store.journals(12_000).unwrap()), 0, &Arc::default()));
    buffer.spawn_committer().unwrap();
    let appended = Arc::new(AtomicUsize::new(0));
    let durable = Arc::new(Mutex::new(HashSet::new()));
    let handles = Arc::new(OnceLock::<Vec<AbortHandle>>::new());
    let mut tasks: Vec<JoinHandle<()>> = Vec::new();
    for task in 0..TASKS {
        let (buffer, appended, durable) = (Arc::clone(&buffer), Arc::clone(&appended), Arc::clone(&durable));
        let handles = Arc::clone(&handles);
        // The task to abort after each report. Most of the tasks are waiting then.
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
                        // No journal is ready.
                        Err(error) => assert_eq!(error, AppendError::Full),
                    }
                    buffer.prepare_journals().unwrap();
                    tokio::task::yield_now().await;
                };
                appended.fetch_add(1, Ordering::Relaxed);
                victim.into_iter().for_each(|victim| handles.wait()[victim].abort());
                ticket.durable().await.unwrap();
                durable.lock().unwrap().insert(line);
            }
        }));
    }
    handles.set(tasks.iter().map(JoinHandle::abort_handle).collect()).unwrap();
    for (task, handle) in tasks.into_iter().enumerate() {
        // Far longer than the test takes. A task that still waits then was never woken.
        match tokio::time::timeout(Duration::from_secs(60), handle).await.expect("a task was never woken") {
            Ok(()) => {}
            Err(error) => assert!(error.is_cancelled() && task % 3 == 0, "{error}"),
        }
    }

    buffer.close();
    let batches: Vec<_> = std::iter::from_fn(|| buffer.next_sealed()).collect();
    assert!(batches.len() > 5, "{}", batches.len());
    let durable = durable.lock().unwrap();
    assert!(durable.len() < appended.load(Ordering::Relaxed), "some tasks are aborted while they wait");
    let in_memory: Vec<_> = batches.iter().map(|batch| text(batch)).collect();
    let journaled: Vec<_> = batches.iter().map(|batch| journal_text(dir.path(), batch)).collect();
    for texts in [in_memory, journaled] {
        let lines: HashSet<_> = texts.iter().flat_map(|text| text.lines()).collect();
        assert_eq!(lines.len(), texts.iter().flat_map(|text| text.lines()).count(), "a report is stored twice");
        let lost: Vec<_> = durable.iter().filter(|line| !lines.contains(line.as_str())).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn aborted_tasks_leave_no_task_waiting_for_a_journal() {
    append_from_tasks(Ack::Journal).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn aborted_tasks_leave_no_task_waiting_for_a_sync() {
    append_from_tasks(Ack::Disk).await;
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn a_journal_that_cannot_be_written_fails_all_waiting_tasks_and_seals_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::store::Store::open(dir.path(), &Arc::default()).unwrap();
    let layout = BufferLayout { batches: 2, shards: 1, chunk_bytes: 64 };
    let buffer = Buffer::new(layout, Ack::Journal, Some(store.journals(64).unwrap()), 0, &Arc::default());
    buffer.spawn_committer().unwrap();
    let report = Reports::check(b"{}").unwrap();
    let tickets = [(); 3].map(|()| buffer.append(&report).unwrap());
    let taken = dir.path().join("journal").join(tickets[0].batch.id().journal());
    fs::write(&taken, "").unwrap();
    let [first, second, third] = &tickets;
    let outcomes = in_time(async { tokio::join!(first.durable(), second.durable()) }).await;
    assert_eq!(outcomes, (Err(NotDurable), Err(NotDurable)));
    fs::remove_file(&taken).unwrap();
    assert_eq!(in_time(third.durable()).await, Err(NotDurable), "a later write proves nothing about the first one");
    let next = buffer.append(&report).unwrap();
    assert!(!Arc::ptr_eq(&next.batch, &first.batch));
    assert_eq!(next.durable().await, Ok(()));
}

#[test]
fn a_batch_is_due_when_its_first_report_is_old_enough_and_an_empty_batch_never_is() {
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
fn a_closed_buffer_refuses_appends_and_is_drained_when_all_batches_are_flushed() {
    let buffer = buffer(3, 1, 64);
    let report = Reports::check(b"{}").unwrap();
    buffer.append(&report).unwrap();
    buffer.close();
    buffer.close();
    assert_eq!(buffer.append(&report).unwrap_err(), AppendError::Closed);
    assert!(!buffer.is_drained());
    assert_eq!(text(&buffer.next_sealed().unwrap()), "{}\n");
    assert!(buffer.is_drained());
}

#[test]
fn a_flusher_that_waits_for_the_last_batch_is_woken_when_it_is_dropped() {
    let buffer = buffer(2, 1, 64);
    let ticket = buffer.append(&Reports::check(b"{}").unwrap()).unwrap();
    thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            buffer.set_flusher(thread::current());
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
fn one_writer_fills_every_chunk_before_a_batch_is_full() {
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
fn the_times_of_a_batch_match_its_first_and_last_report() {
    let buffer = buffer(2, 2, 64);
    let report = Reports::check(b"{}").unwrap();
    let before = SystemTime::now();
    let ticket = buffer.append_to(1, &report).unwrap();
    buffer.append_to(0, &report).unwrap();
    let (first, last) = ticket.batch.times().unwrap();
    let slack = Duration::from_secs(1); // two clocks are read one after the other
    assert!(before - slack <= first && first < last && last <= SystemTime::now() + slack);
}

#[test]
fn many_threads_and_a_slow_flusher_store_every_report_once() {
    append_from_threads(&buffer(3, 3, 2_000));
}

#[test]
fn threads_that_rotate_at_the_same_time_store_every_report_once() {
    // One or a few reports fill a batch, and there are always free batches.
    append_from_threads(&buffer(64, 1, 150));
}

fn append_from_threads(buffer: &Buffer) {
    const WRITERS: usize = 4;
    const REPORTS: usize = if cfg!(miri) { 20 } else { 5_000 };
    let files = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn(move || {
                    for n in 0..REPORTS {
                        let line = line(writer, n, n % 97);
                        let report = Reports::check(line.as_bytes()).unwrap();
                        while let Err(error) = buffer.append(&report) {
                            assert_eq!(error, AppendError::Full);
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
                    Some(batch) => files.push(text(&batch)),
                    None => thread::yield_now(),
                }
            }
            files
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        buffer.close();
        flusher.join().unwrap()
    });
    assert!(files.len() > REPORTS / 50, "{}", files.len());
    assert_each_once(&files, &(0..WRITERS).map(|writer| (writer, REPORTS)).collect());
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
    fn any_sequence_stores_every_accepted_report_once(
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
                        Err(error) => prop_assert_eq!(error, AppendError::Full),
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
        assert_each_once(&files, &counts);
    }
}

/// A buffer of batches with one report each, with journals in `dir`.
fn journaled(dir: &Path, batches: usize, spill_bytes: u64) -> (crate::store::Store, Buffer) {
    let store = crate::store::Store::open(dir, &Arc::default()).unwrap();
    let layout = BufferLayout { batches, shards: 1, chunk_bytes: 3 };
    let journals = store.journals(3).unwrap();
    let buffer = Buffer::new(layout, Ack::Journal, Some(journals), spill_bytes, &Arc::default());
    buffer.spawn_committer().unwrap();
    (store, buffer)
}

/// Publishes the batches without memory, as maintenance does.
fn publish_pending(store: &crate::store::Store, buffer: &Buffer) {
    for pending in buffer.unpublished() {
        store.finish(&pending, crate::store::Compression { level: 1, threads: 1 }).unwrap();
        buffer.remove_published(&pending);
    }
    assert!(!buffer.has_unpublished());
}

/// The number of reports in the report files of a directory.
fn reports_in(dir: &Path) -> usize {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    files
        .map(|path| zstd::decode_all(fs::File::open(path).unwrap()).unwrap().split(|byte| *byte == b'\n').count() - 1)
        .sum()
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn only_one_batch_is_spilled_while_tickets_hold_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, buffer) = journaled(dir.path(), 4, 1_000);
    let report = Reports::check(b"{}").unwrap();
    let mut tickets = Vec::new();
    for _ in 0..4 {
        buffer.prepare_journals().unwrap();
        let ticket = buffer.append(&report).unwrap();
        ticket.durable().await.unwrap();
        tickets.push(ticket);
    }
    for round in 0..3 {
        buffer.prepare_journals().unwrap();
        assert_eq!(buffer.append(&report).unwrap_err(), AppendError::Full);
        assert_eq!(buffer.wants_spill() && buffer.spill(), round == 0);
    }
    assert_eq!(buffer.unpublished.spilled_bytes(), 3, "one batch of three bytes is spilled");
    tickets.remove(0);
    buffer.append(&report).unwrap();
    assert_eq!(buffer.unpublished.spilled_bytes(), 3);
}

#[test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
fn a_thread_that_loses_the_race_to_rotate_returns_its_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, buffer) = journaled(dir.path(), 4, 0);
    let journals = || fs::read_dir(dir.path().join("tmp")).unwrap().count();
    buffer.prepare_journals().unwrap();
    let before = journals();
    let full = buffer.active.load_full();
    // Two threads find the batch full and lease the two journals that are ready.
    let [winner, loser] = [(); 2].map(|()| Batch::lease(&buffer.pool).unwrap());
    assert!(!buffer.pool.can_lease());
    assert!(buffer.swap(&full, winner, Trigger::Full));
    assert!(!buffer.swap(&full, loser, Trigger::Full));
    assert!(buffer.pool.can_lease(), "the loser's journal is ready again");
    assert_eq!(journals(), before, "no journal is removed, and no journal has its final name");
    // During the shutdown, a returned journal is removed.
    let late = Batch::lease(&buffer.pool).unwrap();
    buffer.discard_journals();
    drop(late);
    assert!(!buffer.pool.can_lease());
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn a_panic_while_a_spilled_batch_is_dropped_loses_no_report() {
    /// Panics when it is woken, as tokio does when the system refuses to wake a thread.
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("injected while waking");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (store, buffer) = journaled(dir.path(), 2, 1_000);
    let report = Reports::check(b"{}").unwrap();
    for _ in 0..2 {
        buffer.prepare_journals().unwrap();
        buffer.append(&report).unwrap().durable().await.unwrap();
    }
    let mut capacity = Box::pin(buffer.capacity());
    let waker = std::task::Waker::from(Arc::new(Panics));
    assert!(capacity.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    let spilled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| buffer.spill()));
    assert!(spilled.is_err(), "the drop of the batch wakes the task");
    drop(capacity);
    // The spilled batch is registered, and maintenance publishes it.
    assert_eq!(buffer.unpublished.spilled_bytes(), 3);
    publish_pending(&store, &buffer);
    assert_eq!(reports_in(dir.path()), 1);
    buffer.append(&report).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
fn a_refused_append_does_not_wake_the_maintenance_thread() {
    // With 8 batches, the journals run out. With 2 batches, the memory runs out.
    for batches in [8, 2] {
        let dir = tempfile::tempdir().unwrap();
        let (_store, buffer) = journaled(dir.path(), batches, 0);
        let report = Reports::check(b"{}").unwrap();
        while buffer.append(&report).is_ok() {}
        if batches == 2 {
            buffer.prepare_journals().unwrap();
        }
        buffer.set_maintenance(thread::current(), crossbeam_utils::sync::Parker::new().unparker().clone());
        // If `append` unparks this thread, `park_timeout` returns early. `park_timeout` may also return early without a
        // reason, so one attempt of several must wait.
        let waits = || {
            thread::current().unpark();
            thread::park(); // consumes the token
            assert_eq!(buffer.append(&report).unwrap_err(), AppendError::Full);
            let (started, timeout) = (std::time::Instant::now(), Duration::from_millis(5));
            thread::park_timeout(timeout);
            started.elapsed() >= timeout
        };
        assert!((0..5).any(|_| waits()), "{batches} batches");
    }
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn a_batch_whose_journal_was_removed_by_somebody_keeps_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, buffer) = journaled(dir.path(), 2, 1_000);
    let report = Reports::check(b"{}").unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        buffer.prepare_journals().unwrap();
        let ticket = buffer.append(&report).unwrap();
        ticket.durable().await.unwrap();
        ids.push(ticket.batch.id());
    }
    fs::remove_file(dir.path().join("journal").join(ids[0].journal())).unwrap();
    buffer.prepare_journals().unwrap();
    assert_eq!(buffer.append(&report).unwrap_err(), AppendError::Full);
    assert!(buffer.wants_spill() && !buffer.spill());
    assert_eq!(text(&buffer.next_sealed().unwrap()), "{}\n");
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn a_journal_that_is_removed_after_the_spill_is_published_from_its_open_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let (store, buffer) = journaled(dir.path(), 2, 1_000);
    let report = Reports::check(b"{}").unwrap();
    for _ in 0..2 {
        buffer.prepare_journals().unwrap();
        buffer.append(&report).unwrap().durable().await.unwrap();
    }
    buffer.prepare_journals().unwrap();
    assert_eq!(buffer.append(&report).unwrap_err(), AppendError::Full);
    assert!(buffer.wants_spill() && buffer.spill());
    for entry in fs::read_dir(dir.path().join("journal")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    publish_pending(&store, &buffer);
    assert_eq!(reports_in(dir.path()), 1);
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn a_report_whose_journal_fails_is_stored_when_its_batch_is_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, buffer) = journaled(dir.path(), 2, 0);
    let buffer = Arc::new(buffer);
    let ticket = buffer.append(&Reports::check(b"{}").unwrap()).unwrap();
    fs::write(dir.path().join("journal").join(ticket.batch.id().journal()), "").unwrap();
    let stored = tokio::spawn(async move { ticket.stored().await });
    let compression = crate::store::Compression { level: 1, threads: 1 };
    let mut flusher = crate::flush::Flusher::new(Arc::clone(&buffer), Arc::new(store), compression, Duration::ZERO);
    // The failure seals the batch, so the batch is due at once.
    while buffer.rotate_if_due(Duration::from_secs(3600)) > Duration::ZERO {
        tokio::task::yield_now().await;
    }
    assert!(!stored.is_finished());
    flusher.flush_or_retry(&buffer.next_sealed().unwrap());
    tokio::time::timeout(Duration::from_secs(60), stored).await.expect("the task is woken").unwrap();
}

#[tokio::test]
#[cfg_attr(miri, ignore = "Miri does not support these file operations")]
async fn a_batch_is_spilled_only_when_all_of_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::store::Store::open(dir.path(), &Arc::default()).unwrap();
    let layout = BufferLayout { batches: 2, shards: 1, chunk_bytes: 6 };
    let journals = store.journals(6).unwrap();
    let buffer = Buffer::new(layout, Ack::Journal, Some(journals), 1_000, &Arc::default());
    buffer.spawn_committer().unwrap();
    let report = Reports::check(b"{}").unwrap();
    buffer.append(&report).unwrap().durable().await.unwrap();
    // The journal has its name, but the second report of the batch is only in memory.
    let waiting = buffer.append(&report).unwrap();
    for _ in 0..2 {
        buffer.prepare_journals().unwrap();
        buffer.append(&report).unwrap();
    }
    buffer.prepare_journals().unwrap();
    assert_eq!(buffer.append(&report).unwrap_err(), AppendError::Full);
    assert!(buffer.wants_spill() && !buffer.spill());
    waiting.durable().await.unwrap();
    drop(waiting);
    assert!(buffer.wants_spill() && buffer.spill());
    publish_pending(&store, &buffer);
    assert_eq!(reports_in(dir.path()), 2);
}
