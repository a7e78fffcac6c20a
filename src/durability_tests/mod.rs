//! Deterministic tests of the durability guarantee. At each file operation of a run, the operation fails, the process
//! ends, or the power fails.
//!
//! A server runs in one thread, step by step, so that the same steps cause the same file operations. A consumer may
//! take report files away at any time, and this server or another one prunes. After each run the next server recovers.
//! Then every acknowledged report must exist exactly once: in the files, among the reports that the consumer took, or in
//! a file that was pruned because it exceeded the limit.

mod fault_injection;
mod simulated_disk;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::{ControlFlow, Range};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use proptest::prelude::*;
use rustix::io::Errno;
use tempfile::TempDir;

use self::fault_injection::Crashed;
pub(crate) use self::fault_injection::{Fault, Script};
use crate::buffer::{AppendError, Buffer, BufferLayout, Ticket};
use crate::config::Ack;
use crate::flush::Flusher;
use crate::maintenance::Maintenance;
use crate::report::Reports;
use crate::store::{BatchId, Compression, Disk, PruneMode, Retention, Store, Unrecognized, Watch, recover, verify};

const COMPRESSION: Compression = Compression { level: 1, threads: 1 };
const LAYOUT: BufferLayout = BufferLayout { batches: 3, shards: 2, chunk_bytes: 160 };

type Faults = Vec<(Range<usize>, Fault)>;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Concurrent requests with one report each, which is padded with `pad` bytes.
    Post {
        requests: usize,
        pad: usize,
    },
    /// A request whose client disconnects while it waits.
    Abandon,
    /// The active batch is due.
    Rotate,
    Flush,
    /// Recovery of orphans and spilled batches.
    Recover,
    /// A consumer takes all report files away.
    Take,
    /// This server, or another one on the same directory, removes the oldest report files.
    Prune {
        max_bytes: u64,
        by_other: bool,
    },
}

/// Every kind of step, a batch that is full, and memory that runs out.
const STEPS: [Step; 16] = [
    Step::Post { requests: 2, pad: 0 },
    Step::Rotate,
    Step::Post { requests: 3, pad: 30 },
    Step::Abandon,
    Step::Flush,
    Step::Post { requests: 4, pad: 60 },
    Step::Post { requests: 4, pad: 60 },
    Step::Post { requests: 4, pad: 60 },
    Step::Recover,
    Step::Flush,
    Step::Prune { max_bytes: 250, by_other: false },
    Step::Prune { max_bytes: 0, by_other: true },
    Step::Take,
    Step::Post { requests: 2, pad: 0 },
    Step::Flush,
    Step::Post { requests: 1, pad: 100 },
];

fn crash(call: usize) -> (Range<usize>, Fault) {
    (call..call + 1, Fault::Crash)
}

/// The answers to clients, and the reports that a consumer has taken, over all runs on one data directory.
#[derive(Debug, Default)]
struct Ledger {
    sent: u64,
    acknowledged: BTreeSet<u64>,
    /// Refused. They must not be in the files.
    refused: BTreeSet<u64>,
    /// Refused as not durable. They may be in the files.
    not_durable: BTreeSet<u64>,
    /// The ids of the reports that were taken, in order.
    taken: Vec<u64>,
    /// The names of the report files that were taken.
    taken_files: Vec<PathBuf>,
    /// The ids in the files that exceeded a limit, by name of the file. They may be pruned, and no other file may.
    prunable: BTreeMap<PathBuf, Vec<u64>>,
}

impl Ledger {
    /// Takes all report files whose names are durable out of a data directory. A power failure can undo other names.
    fn take(&mut self, data_dir: &Path, is_durable: impl Fn(&Path) -> bool) {
        for path in fs::read_dir(data_dir).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap();
            if BatchId::of_report_file(name.to_str().unwrap()).is_some() && is_durable(&path) {
                self.taken.extend(ids(&path));
                self.prunable.remove(Path::new(name));
                self.taken_files.push(name.into());
                fs::remove_file(&path).unwrap();
            }
        }
    }

    /// Records which files exceed a limit now.
    fn allow_prune(&mut self, data_dir: &Path, max_bytes: u64) {
        let paths = fs::read_dir(data_dir).into_iter().flatten().map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = paths.filter(|path| path.is_file()).collect();
        paths.sort();
        let mut bytes = paths.pop().map_or(0, |newest| newest.metadata().unwrap().len());
        for path in paths.into_iter().rev() {
            bytes += path.metadata().unwrap().len();
            if bytes > max_bytes {
                self.prunable.insert(path.file_name().unwrap().into(), ids(&path));
            }
        }
    }

    /// The ids in the files that were pruned.
    fn pruned(&self, data_dir: &Path) -> Vec<u64> {
        let missing = self.prunable.iter().filter(|(name, _)| !data_dir.join(name).exists());
        missing.flat_map(|(_, ids)| ids.iter().copied()).collect()
    }

    /// Removes the taken files after a power failure. The simulated disk restores them, because it does not record what
    /// the consumer does.
    fn remove_taken(&self, data_dir: &Path) {
        for path in self.taken_files.iter().map(|name| data_dir.join(name)).filter(|path| path.exists()) {
            fs::remove_file(path).unwrap();
        }
    }
}

/// The ids of the reports in a report file.
fn ids(path: &Path) -> Vec<u64> {
    let bytes = zstd::decode_all(fs::File::open(path).unwrap()).unwrap();
    let lines = std::str::from_utf8(&bytes).unwrap().lines();
    lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_u64().unwrap()).collect()
}

/// A temporary directory that contains a data directory.
struct TestDir(TempDir);

impl TestDir {
    fn new() -> Self {
        // In memory if possible: the simulated disk decides what is durable.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Self(tempfile::Builder::new().prefix("netwatch-durability-").tempdir_in(parent).unwrap())
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn data_dir(&self) -> PathBuf {
        self.root().join("data/reports")
    }

    /// Runs `work` on the data directory with these faults. Returns the script with its record of operations, and
    /// whether `work` reached its end.
    fn run(&self, faults: Faults, work: impl FnOnce(Disk, &Path)) -> (Arc<Script>, bool) {
        let script = Script::new(self.root(), faults);
        let survived = self.run_script(&script, work);
        (script, survived)
    }

    /// Runs `work` on the data directory. Returns whether the process reached the end.
    fn run_script(&self, script: &Arc<Script>, work: impl FnOnce(Disk, &Path)) -> bool {
        let ended = panic::catch_unwind(AssertUnwindSafe(|| work(Disk::scripted(script), &self.data_dir())));
        let survived = ended.map_err(|panic| {
            if !panic.is::<Crashed>() {
                panic::resume_unwind(panic);
            }
        });
        survived.is_ok()
    }

    /// A copy of the directory as a power failure could leave it.
    fn after_power_cut(&self, script: &Script, rng: &mut Rng) -> Self {
        let copy = Self::new();
        script.cut_power(copy.root(), rng);
        copy
    }

    /// A copy of the directory as the end of the process leaves it.
    fn copy(&self) -> Self {
        let copy = Self::new();
        Script::new(self.root(), vec![]).cut_power(copy.root(), &mut Rng::with_seed(0));
        copy
    }

    /// Recovers, and compares the files with the ledger.
    fn assert_durable(&self, ledger: &Ledger, case: &dyn std::fmt::Debug) {
        if let Ok(store) = Store::open(&self.data_dir(), &Arc::default()) {
            let recovered = recover(&store, COMPRESSION, &mut Default::default()).unwrap();
            assert_eq!(recovered.failed, 0, "{case:?}");
        }
        let mut counts = BTreeMap::new();
        let gone = ledger.taken.iter().copied().chain(ledger.pruned(&self.data_dir()));
        gone.for_each(|id| *counts.entry(id).or_insert(0) += 1);
        verify(&self.data_dir(), |verdict| {
            assert!(verdict.reports.is_ok(), "{case:?}: {verdict:?}");
            ids(&verdict.path).into_iter().for_each(|id| *counts.entry(id).or_insert(0) += 1);
            Ok(())
        })
        .unwrap();
        let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "{case:?}: stored twice: {twice:?}");
        let missing: Vec<_> = ledger.acknowledged.iter().filter(|id| !counts.contains_key(id)).collect();
        assert!(missing.is_empty(), "{case:?}: acknowledged and lost: {missing:?}");
        let stored: Vec<_> = ledger.refused.iter().filter(|id| counts.contains_key(id)).collect();
        assert!(stored.is_empty(), "{case:?}: refused and stored: {stored:?}");
        for dir in ["journal", "tmp"] {
            let left: Vec<_> = fs::read_dir(self.data_dir().join(dir)).into_iter().flatten().collect();
            assert!(left.is_empty(), "{case:?}: files are left: {left:?}");
        }
    }
}

/// A server without threads: the parts that `server::run` connects.
struct TestServer<'a> {
    is_durable: Box<dyn Fn(&Path) -> bool>,
    flusher: Flusher,
    maintenance: Maintenance,
    buffer: Arc<Buffer>,
    watch: Watch,
    /// Another server on the same directory.
    other: (Store, Watch),
    data_dir: PathBuf,
    ledger: &'a RefCell<Ledger>,
    runtime: tokio::runtime::Runtime,
}

impl<'a> TestServer<'a> {
    /// `None` if the server refuses to start, which a disk error permits.
    fn start(disk: Disk, data_dir: &Path, ack: Ack, ledger: &'a RefCell<Ledger>) -> Option<Self> {
        let is_durable = Box::new(disk.is_durable());
        let store = Arc::new(Store::open_on(disk.clone(), data_dir, &Arc::default()).ok()?);
        let other = (Store::open_existing_on(disk, data_dir).ok()?, Watch::default());
        let journals = match ack {
            Ack::Memory => None,
            _ => Some(store.journals(LAYOUT.batch_bytes()).ok()?),
        };
        let buffer = Arc::new(Buffer::new(LAYOUT, ack, journals, 1_000, &Arc::default()));
        let flusher = Flusher::new(Arc::clone(&buffer), Arc::clone(&store), COMPRESSION, Duration::from_secs(60));
        let maintenance = Maintenance {
            buffer: Arc::clone(&buffer),
            store,
            min_free_bytes: 0,
            retention: Retention::default(),
            prune_on_full: false,
            compression: COMPRESSION,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let data_dir = data_dir.to_owned();
        let watch = Watch::default();
        Some(Self { is_durable, flusher, maintenance, buffer, watch, other, data_dir, ledger, runtime })
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Post { requests, pad } => self.post(requests, pad),
            Step::Abandon => {
                if let Some((_, ticket)) = self.append(0) {
                    {
                        let _context = self.runtime.enter();
                        let mut durable = std::pin::pin!(ticket.durable());
                        // The second poll continues after the yield, and leads if there is no leader.
                        let mut context = Context::from_waker(Waker::noop());
                        if durable.as_mut().poll(&mut context).is_pending() {
                            let _dropped = durable.as_mut().poll(&mut context);
                        }
                    }
                    // The group is committed without the request.
                    self.buffer.commit_waiting();
                }
                self.post(1, 0);
            }
            Step::Rotate => drop(self.buffer.rotate_if_due(Duration::ZERO)),
            Step::Flush => drop(self.buffer.next_sealed().map(|batch| self.flusher.flush_or_retry(&batch))),
            Step::Recover => drop(self.maintenance.recover_once(&mut Unrecognized::new())),
            Step::Take => self.ledger.borrow_mut().take(&self.data_dir, &self.is_durable),
            Step::Prune { max_bytes, by_other } => {
                self.ledger.borrow_mut().allow_prune(&self.data_dir, max_bytes);
                let (store, watch) = match by_other {
                    false => (&*self.maintenance.store, &mut self.watch),
                    true => (&self.other.0, &mut self.other.1),
                };
                // No file is so old.
                let retention = Retention { max_age: Some(Duration::from_secs(3600)), max_bytes: Some(max_bytes) };
                let on_pruned = &mut |_: &_| Ok(ControlFlow::Continue(()));
                // An error is retried after the next step of this kind.
                let updated = store.update_catalog(watch, &mut || true);
                drop(updated.and_then(|()| store.prune(retention, PruneMode::Remove, SystemTime::now(), on_pruned)));
            }
        }
        if self.buffer.wants_spill() {
            self.buffer.spill();
        }
        // An error is retried after the next step.
        drop(self.buffer.prepare_journals());
    }

    fn append(&self, pad: usize) -> Option<(u64, Ticket)> {
        let mut ledger = self.ledger.borrow_mut();
        ledger.sent += 1;
        let id = ledger.sent;
        let line = format!("{{\"id\":{id},\"pad\":\"{}\"}}", "x".repeat(pad));
        match self.buffer.append(&Reports::check(line.as_bytes()).unwrap()) {
            Ok(ticket) => Some((id, ticket)),
            Err(error) => {
                assert_eq!(error, AppendError::Full);
                ledger.refused.insert(id);
                None
            }
        }
    }

    fn post(&self, requests: usize, pad: usize) {
        let tickets: Vec<_> = (0..requests).filter_map(|_| self.append(pad)).collect();
        let ledger = self.ledger;
        self.runtime.block_on(async {
            let local = tokio::task::LocalSet::new();
            let waits = tickets.into_iter().map(|(id, ticket)| async move { (id, ticket.durable().await) });
            let waits: Vec<_> = waits.map(|wait| local.spawn_local(wait)).collect();
            let commit = async {
                loop {
                    self.buffer.commit_waiting();
                    tokio::task::yield_now().await;
                }
            };
            let answer = async {
                for wait in waits {
                    match wait.await {
                        Ok((id, Ok(()))) => drop(ledger.borrow_mut().acknowledged.insert(id)),
                        Ok((id, Err(_))) => drop(ledger.borrow_mut().not_durable.insert(id)),
                        Err(panicked) => panic::resume_unwind(panicked.into_panic()),
                    }
                }
            };
            local
                .run_until(async {
                    tokio::select! {
                        () = answer => {}
                        () = commit => {}
                    }
                })
                .await;
        });
    }

    /// Checks that the server acknowledges at least one of ten more reports.
    fn assert_works(&mut self, case: &dyn std::fmt::Debug) {
        let before = self.ledger.borrow().acknowledged.len();
        for _ in 0..10 {
            for _ in 0..self.buffer.sealed_len() {
                self.flusher.flush_or_retry(&self.buffer.next_sealed().unwrap());
            }
            self.step(Step::Post { requests: 1, pad: 0 });
        }
        assert!(self.ledger.borrow().acknowledged.len() > before, "{case:?}: no report is acknowledged");
    }

    fn stop(mut self) {
        self.buffer.close();
        self.maintenance.publish_pending_after(|| {
            while !self.buffer.is_drained() {
                self.flusher.flush_or_retry(&self.buffer.next_sealed().expect("no ticket holds a batch"));
            }
        });
        self.buffer.discard_journals();
    }
}

fn run(disk: Disk, data_dir: &Path, ack: Ack, steps: &[Step], ledger: &RefCell<Ledger>) {
    if let Some(mut server) = TestServer::start(disk, data_dir, ack, ledger) {
        steps.iter().for_each(|step| server.step(*step));
        server.stop();
    }
}

/// The file operations of a run without faults.
fn calls_of_a_run(ack: Ack) -> Vec<&'static str> {
    let (test_dir, ledger) = (TestDir::new(), RefCell::default());
    let (script, survived) = test_dir.run(vec![], |disk, dir| run(disk, dir, ack, &STEPS, &ledger));
    let ledger = ledger.into_inner();
    let pruned = ledger.pruned(&test_dir.data_dir());
    assert!(survived && ledger.acknowledged.len() > 15 && !ledger.taken.is_empty(), "{ledger:?}");
    let files = if ack == Ack::Memory { 1 } else { 2 };
    assert!(!pruned.is_empty() && ledger.prunable.len() == files, "{pruned:?} {ledger:?}");
    test_dir.assert_durable(&ledger, &ack);
    script.calls()
}

/// The file operations of a run to which `fault` applies.
fn calls_with(fault: Fault, ack: Ack) -> impl Iterator<Item = usize> {
    let calls = calls_of_a_run(ack).into_iter().enumerate();
    calls.filter(move |(_, call)| fault.applies_to(call)).map(|(index, _)| index)
}

const ERRORS: [Fault; 5] = [
    Fault::Fails(Errno::NOSPC),
    Fault::Fails(Errno::IO),
    Fault::Fails(Errno::INTR),
    Fault::Denies(Errno::IO),
    Fault::Short,
];

#[test]
fn any_operation_may_fail_and_the_service_recovers() {
    for (ack, fault) in [Ack::Memory, Ack::Journal, Ack::Disk].into_iter().flat_map(|ack| ERRORS.map(|f| (ack, f))) {
        for (first, count) in calls_with(fault, ack).flat_map(|first| [(first, 1), (first, 7)]) {
            let case = (ack, fault, first, count);
            let (test_dir, ledger) = (TestDir::new(), RefCell::default());
            let (_, survived) = test_dir.run(vec![(first..first + count, fault)], |disk, dir| {
                let Some(mut server) = TestServer::start(disk, dir, ack, &ledger) else { return };
                STEPS.iter().for_each(|step| server.step(*step));
                server.assert_works(&case);
                server.stop();
            });
            assert!(survived);
            let ledger = ledger.into_inner();
            let is_error = !matches!(fault, Fault::Short | Fault::Fails(Errno::INTR));
            assert!(is_error || ledger.not_durable.is_empty(), "{case:?}: {ledger:?}");
            test_dir.assert_durable(&ledger, &case);
        }
    }
}

#[test]
fn the_process_and_the_next_recovery_may_end_at_any_operation() {
    for (ack, end) in
        [Ack::Journal, Ack::Disk].into_iter().flat_map(|ack| (0..calls_of_a_run(ack).len()).map(move |end| (ack, end)))
    {
        let (test_dir, ledger) = (TestDir::new(), RefCell::default());
        test_dir.run(vec![crash(end)], |disk, dir| run(disk, dir, ack, &STEPS, &ledger));
        let mut ledger = ledger.into_inner();
        if end % 2 == 0 {
            // A consumer takes all files before the recovery.
            ledger.take(&test_dir.data_dir(), |_| true);
        }
        // Each recovery gets one operation further.
        for recovery_end in 0.. {
            let test_dir = test_dir.copy();
            let (_, recovered) = test_dir.run(vec![crash(recovery_end)], |disk, dir| {
                let store = Store::open_on(disk, dir, &Arc::default()).unwrap();
                recover(&store, COMPRESSION, &mut Default::default()).unwrap();
            });
            test_dir.assert_durable(&ledger, &(ack, end, recovery_end));
            if recovered {
                break;
            }
        }
    }
}

#[test]
fn the_process_may_end_soon_after_a_failed_operation() {
    for fault in [Fault::Fails(Errno::NOSPC), Fault::Denies(Errno::IO)] {
        for (failed, end) in
            calls_with(fault, Ack::Journal).flat_map(|failed| (failed + 1..failed + 30).map(move |end| (failed, end)))
        {
            let (test_dir, ledger) = (TestDir::new(), RefCell::default());
            let faults = vec![(failed..failed + 1, fault), crash(end)];
            test_dir.run(faults, |disk, dir| run(disk, dir, Ack::Journal, &STEPS, &ledger));
            test_dir.assert_durable(&ledger.into_inner(), &(fault, failed, end));
        }
    }
}

#[test]
fn the_power_may_fail_at_any_operation() {
    for end in 0..calls_of_a_run(Ack::Disk).len() {
        let (test_dir, ledger) = (TestDir::new(), RefCell::default());
        let (script, _) = test_dir.run(vec![crash(end)], |disk, dir| run(disk, dir, Ack::Disk, &STEPS, &ledger));
        let ledger = ledger.into_inner();
        for seed in 0..10 {
            let test_dir = test_dir.after_power_cut(&script, &mut Rng::with_seed(seed));
            ledger.remove_taken(&test_dir.data_dir());
            test_dir.assert_durable(&ledger, &(end, seed));
        }
    }
}

#[test]
fn the_power_may_fail_during_the_recovery_after_a_crash() {
    for end in 0..calls_of_a_run(Ack::Disk).len() {
        // Each recovery gets one operation further.
        for recovery_end in 0.. {
            let (test_dir, ledger) = (TestDir::new(), RefCell::default());
            let (crashed, _) = test_dir.run(vec![crash(end)], |disk, dir| run(disk, dir, Ack::Disk, &STEPS, &ledger));
            // What the crashed process did not sync is still not synced.
            let script = Script::after(&crashed, vec![crash(recovery_end)]);
            let recovered = test_dir.run_script(&script, |disk, dir| {
                if let Ok(store) = Store::open_on(disk, dir, &Arc::default()) {
                    recover(&store, COMPRESSION, &mut Unrecognized::new()).unwrap();
                }
            });
            let ledger = ledger.into_inner();
            for seed in 0..3 {
                let test_dir = test_dir.after_power_cut(&script, &mut Rng::with_seed(seed));
                ledger.remove_taken(&test_dir.data_dir());
                test_dir.assert_durable(&ledger, &(end, recovery_end, seed));
            }
            if recovered {
                break;
            }
        }
    }
}

/// One run on a data directory, and how it ends.
#[derive(Debug, Clone)]
struct Plan {
    steps: Vec<Step>,
    faults: Faults,
    /// If set and the process ends early, the power fails as well. The seed decides which unsynced changes survive.
    power_cut: Option<u64>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let step = prop_oneof![
        6 => (1..5_usize, 0..110_usize).prop_map(|(requests, pad)| Step::Post { requests, pad }),
        1 => Just(Step::Abandon),
        1 => Just(Step::Rotate),
        2 => Just(Step::Flush),
        1 => Just(Step::Recover),
        1 => Just(Step::Take),
        2 => (0..1000_u64, any::<bool>()).prop_map(|(max_bytes, by_other)| Step::Prune { max_bytes, by_other }),
    ];
    let fault = (0..200_usize, 1..8_usize, proptest::sample::select(&ERRORS[..]));
    let fault = fault.prop_map(|(first, count, fault)| (first..first + count, fault));
    let end = proptest::option::of((0..300_usize).prop_map(crash));
    let all =
        (proptest::collection::vec(step, 1..25), proptest::collection::vec(fault, 0..4), end, any::<Option<u64>>());
    all.prop_map(|(steps, faults, end, power_cut)| Plan {
        steps,
        faults: end.into_iter().chain(faults).collect(),
        power_cut,
    })
}

proptest! {
    #[test]
    fn the_guarantee_of_each_mode_holds_over_several_runs(
        plans in proptest::collection::vec(plan(), 1..4),
        ack in proptest::sample::select(&[Ack::Memory, Ack::Journal, Ack::Disk][..]),
    ) {
        let (mut test_dir, ledger) = (TestDir::new(), RefCell::new(Ledger::default()));
        for plan in &plans {
            let before = ledger.borrow().acknowledged.clone();
            let (script, survived) =
                test_dir.run(plan.faults.clone(), |disk, dir| run(disk, dir, ack, &plan.steps, &ledger));
            let power_cut = plan.power_cut.filter(|_| !survived);
            if let Some(seed) = power_cut {
                test_dir = test_dir.after_power_cut(&script, &mut Rng::with_seed(seed));
                ledger.borrow().remove_taken(&test_dir.data_dir());
            }
            let is_guaranteed = match ack {
                Ack::Memory => survived,
                Ack::Journal => power_cut.is_none(),
                Ack::Disk => true,
            };
            if !is_guaranteed {
                ledger.borrow_mut().acknowledged = before;
            }
        }
        test_dir.assert_durable(&ledger.into_inner(), &(ack, plans));
    }
}
