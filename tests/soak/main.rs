//! A soak with faults: two servers on one disk must store each report as often as they have told its client.
//!
//! Clients send reports in all forms. Two threads cause random faults: kills, restarts, a full disk, a stalled disk, a
//! log that nobody reads, a cleaner, attacks. A consumer takes the report files away and compares them with the ledger
//! of the clients. At the end, the ledger must be exact, and the servers must not use more memory, descriptors and
//! threads than at the beginning.
//!
//! The data directory is on an ext4 file system of its own. Requires root, e2fsprogs and util-linux (`fsfreeze`).
//!
//! `SOAK_SECONDS` is the duration (default: 1800). `SOAK_SEED` is the seed of the faults and clients; the timing still
//! differs between runs. `SOAK_TRACE=1` prints each fault. `SOAK_WITHOUT=Cleaner,Kill` leaves out some of them.

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod faults;
mod ledger;
mod servers;

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::file_system::{FileSystem, Kind};
use common::{Random, from_env};
use faults::{ALL, Disturbances, Locks};
use ledger::Ledger;
use servers::{Slot, Usage};

const HTTP1_CLIENTS: usize = 6;
const HTTP2_CLIENTS: usize = 2;
const CLIENTS: usize = HTTP1_CLIENTS + HTTP2_CLIENTS;

/// Threads that cause faults at the same time.
const LANES: u64 = 2;

/// Load without faults, before and after them: a sixth of the run, but not longer.
const CALM: Duration = Duration::from_secs(15);

/// Faults of the disk still have effects for a while: pauses before retries, and late answers.
const AFTERMATH: Duration = Duration::from_secs(6);

/// Increases that are permitted between the beginning and the end of the run, without clients.
const MORE_RSS_KIB: u64 = 32 * 1024;
const MORE_DESCRIPTORS: u64 = 8;
const MORE_THREADS: u64 = 3;

/// Maximum time until a server without clients has released what it does not need.
const RELEASED: Duration = Duration::from_secs(30);

/// Size of the file system.
const DISK_MIB: u64 = 256;

struct Soak {
    seed: u64,
    started: Instant,
    duration: Duration,
    data_dir: PathBuf,
    ledger: Arc<Ledger>,
    slots: [Slot; 2],
    /// After the servers, because fields are dropped in this order.
    file_system: FileSystem,
    locks: Locks,
    disturbances: Disturbances,
    last_disturbance: Mutex<Instant>,
    is_consumer_fast: AtomicBool,
    /// Clients send without pauses.
    is_burst: AtomicBool,
    fault_counts: [AtomicU64; ALL.len()],
    /// Clients close their connections and wait.
    are_clients_paused: AtomicBool,
    paused_clients: AtomicU64,
    have_faults_ended: AtomicBool,
    have_clients_ended: AtomicBool,
    has_consumer_ended: AtomicBool,
}

impl Soak {
    fn new(seed: u64, duration: Duration) -> Self {
        let file_system = FileSystem::mount(Kind::Ext4, DISK_MIB);
        let data_dir = file_system.path.join("reports");
        let ledger = Arc::new(Ledger::new(CLIENTS));
        Self {
            seed,
            started: Instant::now(),
            duration,
            slots: [0, 1].map(|number| Slot::new(number, &data_dir, &ledger)),
            file_system,
            data_dir,
            ledger,
            locks: Locks::default(),
            disturbances: Disturbances::new(0),
            last_disturbance: Mutex::new(Instant::now()),
            is_consumer_fast: AtomicBool::new(false),
            is_burst: AtomicBool::new(false),
            fault_counts: std::array::from_fn(|_| AtomicU64::new(0)),
            are_clients_paused: AtomicBool::new(false),
            paused_clients: AtomicU64::new(0),
            have_faults_ended: AtomicBool::new(false),
            have_clients_ended: AtomicBool::new(false),
            has_consumer_ended: AtomicBool::new(false),
        }
    }

    fn faults_run(&self) -> bool {
        !self.have_faults_ended.load(Ordering::Acquire)
    }

    fn is_second_half(&self) -> bool {
        self.started.elapsed() > self.duration / 2
    }

    /// Waits, but not beyond the end of the faults.
    fn pause(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while self.faults_run() && Instant::now() < until {
            thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)));
        }
    }

    fn trace(&self, text: impl Fn() -> String) {
        if from_env("SOAK_TRACE").is_some() {
            println!("{:7.2} s: {}", self.started.elapsed().as_secs_f64(), text());
        }
    }

    /// Whether there was no fault of the disk since `start`, and none shortly before.
    fn is_calm_since(&self, start: Instant) -> bool {
        self.disturbances.load(Ordering::Acquire) == 0 && *self.last_disturbance.lock().unwrap() + AFTERMATH < start
    }

    /// The pause of a client between two requests.
    fn pace(&self, random: &mut Random, max_ms: u64) -> Duration {
        let is_burst = self.is_burst.load(Ordering::Acquire);
        Duration::from_millis(if is_burst { 0 } else { random.below(max_ms) })
    }

    fn clients_must_wait(&self) -> bool {
        self.are_clients_paused.load(Ordering::Acquire) || self.have_clients_ended.load(Ordering::Acquire)
    }

    /// Whether a client continues. Waits while the clients are paused, after it has called `disconnect`.
    fn clients_run(&self, disconnect: impl FnOnce()) -> bool {
        if self.clients_must_wait() {
            disconnect();
            self.paused_clients.fetch_add(1, Ordering::AcqRel);
            while self.are_clients_paused.load(Ordering::Acquire) && !self.have_clients_ended.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(20));
            }
            self.paused_clients.fetch_sub(1, Ordering::AcqRel);
        }
        !self.have_clients_ended.load(Ordering::Acquire)
    }

    /// Runs `measure` while no client is connected.
    fn without_clients<T>(&self, measure: impl FnOnce() -> T) -> T {
        self.are_clients_paused.store(true, Ordering::Release);
        let paused = || (self.paused_clients.load(Ordering::Acquire) == CLIENTS as u64).then_some(());
        common::wait_until("all clients are paused", paused);
        let measured = measure();
        self.are_clients_paused.store(false, Ordering::Release);
        measured
    }

    /// Enters all report files into the ledger and removes them, until it is stopped and there are none.
    fn consume(&self) {
        let mut taken = HashSet::new();
        loop {
            let is_last = self.has_consumer_ended.load(Ordering::Acquire);
            let mut files: Vec<_> =
                fs::read_dir(&self.data_dir).into_iter().flatten().flatten().map(|file| file.path()).collect();
            files.retain(|path| path.extension().is_some_and(|extension| extension == "zst"));
            for path in &files {
                if !taken.insert(path.file_name().unwrap().to_owned()) {
                    self.ledger.violation(format!("{} appeared again", path.display()));
                }
                self.take(path);
            }
            if is_last && files.is_empty() {
                return;
            }
            let pause = if self.is_consumer_fast.load(Ordering::Acquire) || is_last { 1 } else { 500 };
            thread::sleep(Duration::from_millis(pause)); // how often the consumer looks
        }
    }

    fn take(&self, path: &Path) {
        let content = File::open(path).and_then(zstd::decode_all);
        match content.map(String::from_utf8) {
            Ok(Ok(text)) if text.ends_with('\n') => text.lines().for_each(|line| self.ledger.store(line)),
            unreadable => self.ledger.violation(format!("{} is not valid: {unreadable:.200?}", path.display())),
        }
        fs::remove_file(path).unwrap();
    }

    /// Waits and prints a line per minute. Returns early if a guarantee is broken.
    fn watch(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while Instant::now() < until && !self.ledger.is_violated() {
            let before = self.started.elapsed().as_secs() / 60;
            thread::sleep(Duration::from_millis(50));
            self.slots.iter().for_each(Slot::expect_running);
            let minute = self.started.elapsed().as_secs() / 60;
            if minute > before {
                println!("minute {minute}: {}", self.summary());
            }
        }
    }

    fn summary(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Ledger { acknowledged, refused, unknown, stored, .. } = &*self.ledger;
        let faults =
            ALL.iter().zip(&self.fault_counts).map(|(fault, happened)| format!("{fault:?} {}", count(happened)));
        let usage = self.slots.each_ref().map(|slot| match slot.process_usage() {
            Some(Usage { rss_kib, descriptors, threads }) => {
                format!("{} MiB, {descriptors} descriptors, {threads} threads", rss_kib / 1024)
            }
            None => "in a fault".to_owned(),
        });
        format!(
            "{} acknowledged, {} refused, {} unknown, {} stored; starts {} + {}, failed {} + {}; spilled {} + {}; {}; \
             servers: {}; {}",
            count(acknowledged),
            count(refused),
            count(unknown),
            count(stored),
            count(&self.slots[0].starts),
            count(&self.slots[1].starts),
            count(&self.slots[0].failed_starts),
            count(&self.slots[1].failed_starts),
            count(&self.slots[0].spilled),
            count(&self.slots[1].spilled),
            faults.collect::<Vec<_>>().join(", "),
            usage[0],
            usage[1]
        )
    }

    /// What each server uses. Both must run.
    fn usage(&self) -> [Usage; 2] {
        self.slots.each_ref().map(|slot| slot.usage().expect("the server runs"))
    }

    /// What each server uses when it has noticed that its clients are gone.
    fn settled_usage(&self) -> [Usage; 2] {
        let mut last = self.usage();
        common::wait_until("the servers have closed all connections", || {
            thread::sleep(Duration::from_millis(300)); // time for a change
            let now = self.usage();
            let is_settled = last.iter().zip(&now).all(|(last, now)| now.descriptors >= last.descriptors);
            last = now;
            is_settled.then_some(now)
        })
    }

    /// Waits until the servers use no more than at the beginning.
    fn compare_usage(&self, before: [Usage; 2]) {
        let deadline = Instant::now() + RELEASED;
        loop {
            let now = self.usage();
            let is_released = before.iter().zip(&now).all(|(before, now)| {
                now.rss_kib <= before.rss_kib + MORE_RSS_KIB
                    && now.descriptors <= before.descriptors + MORE_DESCRIPTORS
                    && now.threads <= before.threads + MORE_THREADS
            });
            if is_released || Instant::now() > deadline {
                println!("before the faults: {before:?}\nafter the faults: {now:?}");
                if !is_released {
                    self.ledger.violation("the servers use more than before the faults".to_owned());
                }
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn end_all(&self) {
        self.have_faults_ended.store(true, Ordering::Release);
        self.have_clients_ended.store(true, Ordering::Release);
        self.has_consumer_ended.store(true, Ordering::Release);
    }

    fn run(&self) {
        let calm = CALM.min(self.duration / 6);
        let mut random = Random(self.seed);
        thread::scope(|scope| {
            let _end = EndOnDrop(self);
            self.slots.iter().for_each(|slot| slot.start(&mut slot.lock()));
            let consumer = scope.spawn(|| self.consume());
            let client = |number| {
                scope.spawn(move || match number < HTTP1_CLIENTS {
                    true => clients::http1(self, number),
                    false => clients::http2(self, number),
                })
            };
            let clients: Vec<_> = (0..CLIENTS).map(client).collect();
            self.watch(calm);
            let before = self.without_clients(|| self.settled_usage());

            let lane = |number| {
                let queue = if number == 0 { faults::shuffled(&mut random) } else { Vec::new() };
                let random = Random(random.below(u64::MAX));
                scope.spawn(move || faults::cause(self, queue, random))
            };
            let lanes: Vec<_> = (0..LANES).map(lane).collect();
            self.watch(self.duration.saturating_sub(2 * calm));
            self.have_faults_ended.store(true, Ordering::Release);
            lanes.into_iter().for_each(|lane| lane.join().unwrap());

            self.watch(calm);
            if !self.ledger.is_violated() {
                self.without_clients(|| self.compare_usage(before));
            }
            println!("end: {}", self.summary());
            if self.ledger.is_violated() {
                eprintln!("violations: {:#?}", self.ledger.violations());
                self.slots.iter().for_each(|slot| eprintln!("log of a server:\n{}", slot.log()));
            }
            self.have_clients_ended.store(true, Ordering::Release);
            clients.into_iter().for_each(|client| client.join().unwrap());
            self.slots.iter().for_each(Slot::stop);
            let recovered = common::command(&self.data_dir).arg("recover").arg(&self.data_dir).output().unwrap();
            println!("{}", String::from_utf8_lossy(&recovered.stdout).trim());
            assert!(recovered.status.success(), "{recovered:?}");
            self.has_consumer_ended.store(true, Ordering::Release);
            consumer.join().unwrap();
        });
    }
}

/// Ends all threads of a run, also if the test panics.
struct EndOnDrop<'a>(&'a Soak);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end_all();
    }
}

#[test]
#[ignore = "takes 30 minutes and requires root: make soak-faults"]
fn each_report_is_stored_as_its_client_was_told_whatever_happens_around_the_servers() {
    let seconds = from_env("SOAK_SECONDS").unwrap_or(1800);
    let seed = from_env("SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("SOAK_SECONDS={seconds} SOAK_SEED={seed}");
    let soak = Soak::new(seed, Duration::from_secs(seconds));
    soak.run();
    for dir in ["journal", "tmp"] {
        let left: Vec<_> =
            fs::read_dir(soak.data_dir.join(dir)).unwrap().map(|file| file.unwrap().file_name()).collect();
        if !left.is_empty() {
            soak.ledger.violation(format!("files are left in {dir}: {left:?}"));
        }
    }
    let quarantined = fs::read_dir(soak.data_dir.join("quarantine")).into_iter().flatten().count();
    println!("{quarantined} files in quarantine: incomplete lines of killed servers");
    let violations = soak.ledger.close();
    assert!(
        violations.is_empty(),
        "{} violations, the first ones: {:#?}",
        violations.len(),
        &violations[..violations.len().min(10)]
    );
    let quiet: Vec<_> =
        ALL.iter().zip(&soak.fault_counts).filter(|(_, count)| count.load(Ordering::Relaxed) == 0).collect();
    println!("faults that did not happen in this run: {quiet:?}");
    let is_complete = seconds >= 300 && std::env::var_os("SOAK_WITHOUT").is_none();
    assert!(!is_complete || quiet.is_empty(), "some faults did not happen");
}
