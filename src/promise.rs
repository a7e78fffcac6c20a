//! What a 200 promises, tried: every call to the disk fails, the process ends at every call, the power does.
//!
//! A server's life is lived here in one thread, step by step, so that the same steps make the same calls each time, and
//! a test can visit them one by one. After each life the next server recovers, and then every report that was
//! acknowledged has to be in the files once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use proptest::prelude::*;
use rustix::io::Errno;
use tempfile::TempDir;

use crate::buffer::{Ack, Buffer, Refused, Shape, Ticket};
use crate::flush::Flusher;
use crate::report::Reports;
use crate::store::recover::recover;
use crate::store::script::{Crashed, Fault, Script};
use crate::store::verify::verify;
use crate::store::{Compression, Disk, Store};
use crate::upkeep::Upkeep;

const COMPRESSION: Compression = Compression { level: 1, threads: 1 };
const SHAPE: Shape = Shape { batches: 3, shards: 2, segment_bytes: 160 };

type Faults = Vec<(Range<usize>, Fault)>;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many requests at once, with reports of so many bytes more than they need.
    Post {
        requests: usize,
        pad: usize,
    },
    /// A request whose client goes away while it waits.
    Abandon,
    /// The first report is old enough.
    Rotate,
    Flush,
    /// A look for orphans, and for what has been spilled.
    Recover,
}

/// One of each, a batch that is full, and memory that runs out.
const LIFE: [Step; 12] = [
    Step::Post { requests: 2, pad: 0 },
    Step::Rotate,
    Step::Post { requests: 3, pad: 30 },
    Step::Abandon,
    Step::Flush,
    Step::Post { requests: 4, pad: 60 },
    Step::Post { requests: 4, pad: 60 },
    Step::Post { requests: 4, pad: 60 },
    Step::Recover,
    Step::Post { requests: 2, pad: 0 },
    Step::Flush,
    Step::Post { requests: 1, pad: 100 },
];

fn crash(call: usize) -> (Range<usize>, Fault) {
    (call..call + 1, Fault::Crash)
}

/// What clients were told, over all lives of a data directory.
#[derive(Debug, Default)]
struct Told {
    sent: u64,
    acknowledged: BTreeSet<u64>,
    /// Told that nothing of it was kept.
    refused: BTreeSet<u64>,
    /// Told that it could not be kept, but may be in the files.
    not_kept: BTreeSet<u64>,
}

/// A place for data directories.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        // In memory, if there is such a place: what is on disk is for the script to say.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Self(tempfile::Builder::new().prefix("netwatch-promise-").tempdir_in(parent).unwrap())
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn data_dir(&self) -> PathBuf {
        self.root().join("data/reports")
    }

    /// Runs `work` on the data directory with these faults. Returns what the disk has seen, and whether the process
    /// lived to the end.
    fn run(&self, faults: Faults, work: impl FnOnce(Disk, &Path)) -> (Arc<Script>, bool) {
        let script = Script::new(self.root(), faults);
        let ended = panic::catch_unwind(AssertUnwindSafe(|| work(Disk::scripted(&script), &self.data_dir())));
        let lived = ended.map_err(|panic| {
            if !panic.is::<Crashed>() {
                panic::resume_unwind(panic);
            }
        });
        (script, lived.is_ok())
    }

    /// What a power cut leaves of it.
    fn after_power_cut(&self, script: &Script, chance: &mut Rng) -> Self {
        let left = Self::new();
        script.cut_power(left.root(), chance);
        left
    }

    /// The same, as a process leaves it that has ended.
    fn copy(&self) -> Self {
        let copy = Self::new();
        Script::new(self.root(), vec![]).cut_power(copy.root(), &mut Rng::with_seed(0));
        copy
    }

    /// Recovers, and checks the promise.
    fn assert_kept(&self, told: &Told, story: &dyn std::fmt::Debug) {
        if let Ok(store) = Store::open(&self.data_dir()) {
            let recovered = recover(&store, COMPRESSION, &mut Default::default()).unwrap();
            assert_eq!(recovered.failed, 0, "{story:?}");
        }
        let mut times = BTreeMap::new();
        for verdict in verify(&self.data_dir()).unwrap() {
            assert!(verdict.reports.is_ok(), "{story:?}: {verdict:?}");
            let bytes = zstd::decode_all(fs::File::open(&verdict.path).unwrap()).unwrap();
            for line in std::str::from_utf8(&bytes).unwrap().lines() {
                let report: serde_json::Value = serde_json::from_str(line).unwrap();
                *times.entry(report["id"].as_u64().unwrap()).or_insert(0) += 1;
            }
        }
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{story:?}: there twice: {twice:?}");
        let missing: Vec<_> = told.acknowledged.iter().filter(|id| !times.contains_key(id)).collect();
        assert!(missing.is_empty(), "{story:?}: acknowledged and lost: {missing:?}");
        let kept: Vec<_> = told.refused.iter().filter(|id| times.contains_key(id)).collect();
        assert!(kept.is_empty(), "{story:?}: refused and kept: {kept:?}");
        let journals: Vec<_> = fs::read_dir(self.data_dir().join("journal")).into_iter().flatten().collect();
        assert!(journals.is_empty(), "{story:?}: {journals:?}");
    }
}

/// A server: what `server::run` wires up, without the threads.
struct Life<'a> {
    flusher: Flusher,
    upkeep: Upkeep,
    buffer: Arc<Buffer>,
    told: &'a RefCell<Told>,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Life<'a> {
    /// `None` when the server refuses to start, as it may with a faulty disk.
    fn start(disk: Disk, data_dir: &Path, ack: Ack, told: &'a RefCell<Told>) -> Option<Self> {
        let store = Arc::new(Store::open_on(disk, data_dir).ok()?);
        let journals = match ack {
            Ack::Memory => None,
            _ => Some(store.journals(SHAPE.shards * SHAPE.segment_bytes).ok()?),
        };
        let buffer = Arc::new(Buffer::new(SHAPE, ack, journals, 1_000));
        let flusher = Flusher {
            buffer: Arc::clone(&buffer),
            store: Arc::clone(&store),
            compression: COMPRESSION,
            interval: Duration::from_secs(60),
        };
        let upkeep = Upkeep { buffer: Arc::clone(&buffer), store, min_free_bytes: 0, compression: COMPRESSION };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Some(Self { flusher, upkeep, buffer, told, runtime })
    }

    fn step(&self, step: Step) {
        match step {
            Step::Post { requests, pad } => self.post(requests, pad),
            Step::Abandon => {
                if let Some((_, ticket)) = self.append(0) {
                    let holders = Arc::strong_count(&ticket.batch);
                    {
                        let _context = self.runtime.enter();
                        let mut kept = std::pin::pin!(ticket.kept());
                        // The second time it is past its yield, and leads if it may.
                        let mut context = Context::from_waker(Waker::noop());
                        if kept.as_mut().poll(&mut context).is_pending() {
                            let _dropped = kept.as_mut().poll(&mut context);
                        }
                    }
                    // The sync that it may have left behind ends first: the same steps make the same calls each time.
                    while Arc::strong_count(&ticket.batch) > holders {
                        thread::yield_now();
                    }
                }
                self.post(1, 0);
            }
            Step::Rotate => drop(self.buffer.rotate_if_due(Duration::ZERO)),
            Step::Flush => drop(self.buffer.next_sealed().map(|batch| self.flusher.flush(&batch))),
            Step::Recover => drop(self.upkeep.recover_once(&mut Default::default())),
        }
        // An error is logged, and it is tried again.
        drop(self.buffer.prepare_journals());
    }

    fn append(&self, pad: usize) -> Option<(u64, Ticket)> {
        let mut told = self.told.borrow_mut();
        told.sent += 1;
        let id = told.sent;
        let line = format!("{{\"id\":{id},\"pad\":\"{}\"}}", "x".repeat(pad));
        match self.buffer.append(&Reports::check(line.as_bytes()).unwrap()) {
            Ok(ticket) => Some((id, ticket)),
            Err(refused) => {
                assert_eq!(refused, Refused::Full);
                told.refused.insert(id);
                None
            }
        }
    }

    fn post(&self, requests: usize, pad: usize) {
        let tickets: Vec<_> = (0..requests).filter_map(|_| self.append(pad)).collect();
        let told = self.told;
        self.runtime.block_on(async {
            let local = tokio::task::LocalSet::new();
            let waits = tickets.into_iter().map(|(id, ticket)| async move { (id, ticket.kept().await) });
            let waits: Vec<_> = waits.map(|wait| local.spawn_local(wait)).collect();
            local
                .run_until(async {
                    for wait in waits {
                        match wait.await {
                            Ok((id, Ok(()))) => drop(told.borrow_mut().acknowledged.insert(id)),
                            Ok((id, Err(_))) => drop(told.borrow_mut().not_kept.insert(id)),
                            Err(panicked) => panic::resume_unwind(panicked.into_panic()),
                        }
                    }
                })
                .await;
        });
    }

    /// Whatever has failed before, and may fail a few times more, reports are kept again.
    fn assert_works(&self, story: &dyn std::fmt::Debug) {
        let before = self.told.borrow().acknowledged.len();
        for _ in 0..10 {
            while let Some(batch) = self.buffer.next_sealed() {
                self.flusher.flush(&batch);
            }
            self.step(Step::Post { requests: 1, pad: 0 });
        }
        assert!(self.told.borrow().acknowledged.len() > before, "{story:?}");
    }

    fn stop(self) {
        self.buffer.close();
        self.upkeep.recover_spilled_after(|| {
            while !self.buffer.is_drained() {
                self.flusher.flush(&self.buffer.next_sealed().expect("nothing else is held"));
            }
        });
        self.buffer.discard_journals();
    }
}

fn live(disk: Disk, data_dir: &Path, ack: Ack, steps: &[Step], told: &RefCell<Told>) {
    if let Some(life) = Life::start(disk, data_dir, ack, told) {
        steps.iter().for_each(|step| life.step(*step));
        life.stop();
    }
}

/// What a life without faults asks of the disk.
fn calls_of_a_life(ack: Ack) -> Vec<&'static str> {
    let (place, told) = (Place::new(), RefCell::default());
    let (script, lived) = place.run(vec![], |disk, dir| live(disk, dir, ack, &LIFE, &told));
    let told = told.into_inner();
    assert!(lived && told.acknowledged.len() > 15, "{told:?}");
    place.assert_kept(&told, &ack);
    script.calls()
}

/// The calls of a life that `fault` can befall.
fn calls_befallen_by(fault: Fault, ack: Ack) -> impl Iterator<Item = usize> {
    let calls = calls_of_a_life(ack).into_iter().enumerate();
    calls.filter(move |(_, call)| fault.can_befall(call)).map(|(index, _)| index)
}

const ERRORS: [Fault; 5] = [
    Fault::Fails(Errno::NOSPC),
    Fault::Fails(Errno::IO),
    Fault::Fails(Errno::INTR),
    Fault::Denies(Errno::IO),
    Fault::Short,
];

#[test]
fn whichever_calls_fail_the_promise_holds_and_service_comes_back() {
    for (ack, fault) in [Ack::Memory, Ack::Journal, Ack::Disk].into_iter().flat_map(|ack| ERRORS.map(|f| (ack, f))) {
        for (first, count) in calls_befallen_by(fault, ack).flat_map(|first| [(first, 1), (first, 7)]) {
            let story = (ack, fault, first, count);
            let (place, told) = (Place::new(), RefCell::default());
            let (_, lived) = place.run(vec![(first..first + count, fault)], |disk, dir| {
                let Some(life) = Life::start(disk, dir, ack, &told) else { return };
                LIFE.iter().for_each(|step| life.step(*step));
                life.assert_works(&story);
                life.stop();
            });
            assert!(lived);
            let told = told.into_inner();
            let is_error = !matches!(fault, Fault::Short | Fault::Fails(Errno::INTR));
            assert!(is_error || told.not_kept.is_empty(), "{story:?}: {told:?}");
            place.assert_kept(&told, &story);
        }
    }
}

#[test]
fn the_process_may_end_at_any_call_and_so_may_the_next_ones_recovery() {
    for (ack, end) in
        [Ack::Journal, Ack::Disk].into_iter().flat_map(|ack| (0..calls_of_a_life(ack).len()).map(move |end| (ack, end)))
    {
        let (place, told) = (Place::new(), RefCell::default());
        place.run(vec![crash(end)], |disk, dir| live(disk, dir, ack, &LIFE, &told));
        let told = told.into_inner();
        // Each time the recovery gets one call further.
        for recovery_end in 0.. {
            let place = place.copy();
            let (_, recovered) = place.run(vec![crash(recovery_end)], |disk, dir| {
                let store = Store::open_on(disk, dir).unwrap();
                recover(&store, COMPRESSION, &mut Default::default()).unwrap();
            });
            place.assert_kept(&told, &(ack, end, recovery_end));
            if recovered {
                break;
            }
        }
    }
}

#[test]
fn the_process_may_end_soon_after_a_call_has_failed() {
    for fault in [Fault::Fails(Errno::NOSPC), Fault::Denies(Errno::IO)] {
        for (failed, end) in calls_befallen_by(fault, Ack::Journal)
            .flat_map(|failed| (failed + 1..failed + 30).map(move |end| (failed, end)))
        {
            let (place, told) = (Place::new(), RefCell::default());
            let faults = vec![(failed..failed + 1, fault), crash(end)];
            place.run(faults, |disk, dir| live(disk, dir, Ack::Journal, &LIFE, &told));
            place.assert_kept(&told.into_inner(), &(fault, failed, end));
        }
    }
}

#[test]
fn the_power_may_fail_at_any_call_with_what_has_not_been_synced() {
    for end in 0..calls_of_a_life(Ack::Disk).len() {
        let (place, told) = (Place::new(), RefCell::default());
        let (script, _) = place.run(vec![crash(end)], |disk, dir| live(disk, dir, Ack::Disk, &LIFE, &told));
        let told = told.into_inner();
        for seed in 0..10 {
            place.after_power_cut(&script, &mut Rng::with_seed(seed)).assert_kept(&told, &(end, seed));
        }
    }
}

/// One life of a data directory, and how it ends.
#[derive(Debug, Clone)]
struct Plan {
    steps: Vec<Step>,
    faults: Faults,
    /// The power fails with the process, with this seed for what is left.
    power_cut: Option<u64>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let step = prop_oneof![
        6 => (1..5_usize, 0..110_usize).prop_map(|(requests, pad)| Step::Post { requests, pad }),
        1 => Just(Step::Abandon),
        1 => Just(Step::Rotate),
        2 => Just(Step::Flush),
        1 => Just(Step::Recover),
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
    fn whatever_happens_in_several_lives_the_promise_of_each_mode_holds(
        plans in proptest::collection::vec(plan(), 1..4),
        ack in proptest::sample::select(&[Ack::Memory, Ack::Journal, Ack::Disk][..]),
    ) {
        let (mut place, told) = (Place::new(), RefCell::new(Told::default()));
        for plan in &plans {
            // What has come through an earlier life is not at stake in this one.
            let before = told.borrow().acknowledged.clone();
            let (script, lived) = place.run(plan.faults.clone(), |disk, dir| live(disk, dir, ack, &plan.steps, &told));
            let power_cut = plan.power_cut.filter(|_| !lived);
            if let Some(seed) = power_cut {
                place = place.after_power_cut(&script, &mut Rng::with_seed(seed));
            }
            let promised = match ack {
                Ack::Memory => lived,
                Ack::Journal => power_cut.is_none(),
                Ack::Disk => true,
            };
            if !promised {
                told.borrow_mut().acknowledged = before;
            }
        }
        place.assert_kept(&told.into_inner(), &(ack, plans));
    }
}
