//! A soak of retention and of the metrics: one server under load, with restarts and a disk that fills and empties.
//!
//! A collector links and reads each report file before retention can prune it. When the clients are idle, the metrics
//! must equal what the clients and the collector have counted. At the end, each acknowledged report was stored once.
//!
//! The data directory is on an ext4 file system of its own. Requires root, util-linux and e2fsprogs.
//!
//! `SOAK_SECONDS` is the duration (default: 600). `SOAK_SEED` is the seed of the clients; the timing still differs
//! between runs.

mod common;
#[path = "soak/ledger.rs"]
mod ledger;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::file_system::{FileSystem, Kind};
use common::{Client, PATIENCE, Random, Server, from_env, wait_until};
use ledger::{Id, Ledger, report};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::Signal;
use serde_json::Value;

const TOKEN: &str = "an-admin-token-of-a-test";

const MAX_BYTES: u64 = 256 << 10;

/// Longer than a report can wait while the disk is full. Otherwise a file could be too old when it is published, and be
/// pruned before the collector sees it.
const MAX_AGE_SECONDS: u64 = 12;

const MIN_FREE_BYTES: u64 = 8 << 20;

const SETTINGS: &[(&str, &str)] = &[
    ("ADMIN_TOKEN", TOKEN),
    ("WORKERS", "2"),
    ("ZSTD_THREADS", "2"),
    ("RETENTION_MAX_BYTES", "256KiB"),
    ("RETENTION_MAX_AGE", "12s"),
    ("FLUSH_INTERVAL", "200ms"),
    ("MAX_BODY_BYTES", "64KiB"),
    ("INFLIGHT_BYTES", "1MiB"),
    ("BATCH_BYTES", "128KiB"),
    ("BUFFER_BYTES", "1MiB"),
    ("SPILL_BYTES", "8MiB"),
];

const DISK_MIB: u64 = 96;

const CLIENTS: usize = 4;

/// Maximum pause of a client between two requests, outside of bursts.
const PACE_MS: u64 = 40;

/// Maximum number of reports in a request.
const MAX_REPORTS: u64 = 10;

/// Increases that are permitted between the warm-up and the end of a process, without clients.
const MORE_RSS_BYTES: u64 = 16 << 20;
const MORE_DESCRIPTORS: u64 = 8;
const MORE_THREADS: u64 = 3;

/// One server process, as clients see it.
struct Lifetime {
    address: SocketAddr,
    /// Reports whose answer 200 has arrived.
    acknowledged: AtomicU64,
    /// From the signal on, connections may break.
    is_stopping: AtomicBool,
}

/// What happens when the disk is full. It alternates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FullDisk {
    /// The server refuses reports in time.
    Refuses,
    /// Nothing is left, and report files cannot be written.
    Fails,
}

impl FullDisk {
    fn left_bytes(self) -> u64 {
        match self {
            Self::Refuses => MIN_FREE_BYTES / 2,
            Self::Fails => 0,
        }
    }

    fn min_free_bytes(self) -> String {
        match self {
            Self::Refuses => format!("{MIN_FREE_BYTES}B"),
            Self::Fails => "off".to_owned(),
        }
    }
}

/// What a scrape says about the use of resources.
#[derive(Debug, Clone, Copy)]
struct Usage {
    rss_bytes: u64,
    descriptors: u64,
    threads: u64,
}

/// The sums of report files that have been read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sums {
    files: u64,
    raw: u64,
    zstd: u64,
}

/// Reads every report file once, also if it is pruned meanwhile.
#[derive(Default)]
struct Collector {
    /// Names of all report files that were ever seen, with their sizes.
    seen: BTreeMap<String, u64>,
    /// Links that were not read yet.
    unread: VecDeque<PathBuf>,
    sums: Sums,
}

impl Collector {
    /// Links all new report files, and reads one. Returns whether there was nothing to do.
    fn step(&mut self, soak: &Soak) -> bool {
        for path in common::report_files(&soak.data_dir) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if self.seen.contains_key(name) {
                continue;
            }
            let link = soak.links.join(name);
            match fs::hard_link(&path, &link) {
                Ok(()) => {
                    self.seen.insert(name.to_owned(), link.metadata().unwrap().len());
                    self.unread.push_back(link);
                }
                // If it is gone, the ledger finds out. If the disk is full, the next step repeats it.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::StorageFull) => {}
                Err(error) => soak.ledger.violation(format!("can't link {name}: {error}")),
            }
        }
        let Some(link) = self.unread.pop_front() else { return true };
        match File::open(&link).and_then(zstd::decode_all).map(String::from_utf8) {
            Ok(Ok(text)) if text.ends_with('\n') => {
                text.lines().for_each(|line| soak.ledger.store(line));
                self.sums.raw += text.len() as u64;
            }
            unreadable => soak.ledger.violation(format!("{} is not valid: {unreadable:.200?}", link.display())),
        }
        self.sums.files += 1;
        self.sums.zstd += link.metadata().unwrap().len();
        fs::remove_file(link).unwrap();
        false
    }

    fn collect_all(&mut self, soak: &Soak) {
        while !self.step(soak) {}
    }
}

struct Soak {
    started: Instant,
    seed: u64,
    data_dir: PathBuf,
    links: PathBuf,
    ledger: Ledger,
    collector: Mutex<Collector>,
    lifetime: Mutex<Option<Arc<Lifetime>>>,
    is_burst: AtomicBool,
    are_clients_paused: AtomicBool,
    paused_clients: AtomicU64,
    has_ended: AtomicBool,
    refused_by_disk: AtomicU64,
    starts: AtomicU64,
    /// From the log: files that were pruned because of their age, and because of the size of all files.
    pruned: [AtomicU64; 2],
    file_system: FileSystem,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let file_system = FileSystem::mount(Kind::Ext4, DISK_MIB);
        let [data_dir, links] = ["reports", "links"].map(|name| file_system.path.join(name));
        [&data_dir, &links].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
        Self {
            started: Instant::now(),
            seed,
            data_dir,
            links,
            ledger: Ledger::new(CLIENTS),
            collector: Mutex::default(),
            lifetime: Mutex::default(),
            is_burst: AtomicBool::new(false),
            are_clients_paused: AtomicBool::new(false),
            paused_clients: AtomicU64::new(0),
            has_ended: AtomicBool::new(false),
            refused_by_disk: AtomicU64::new(0),
            starts: AtomicU64::new(0),
            pruned: [const { AtomicU64::new(0) }; 2],
            file_system,
        }
    }

    fn summary(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Ledger { acknowledged, refused, unknown, stored, .. } = &self.ledger;
        let Sums { files, raw, zstd } = self.collector.lock().unwrap().sums;
        let [by_age, by_size] = self.pruned.each_ref().map(count);
        format!(
            "{} starts; {} acknowledged, {} refused ({} requests: disk full), {} unknown, {} stored; {files} files, \
             {} KiB raw, {} KiB compressed; of stopped servers: {by_age} pruned by age, {by_size} by size",
            count(&self.starts),
            count(acknowledged),
            count(refused),
            count(&self.refused_by_disk),
            count(unknown),
            count(stored),
            raw >> 10,
            zstd >> 10,
        )
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    fn check(&self) {
        assert!(!self.ledger.is_violated(), "{:#?}", self.ledger.violations());
    }

    /// Lets the load run, and prints a line per minute.
    fn load(&self, duration: Duration, is_burst: bool) {
        self.is_burst.store(is_burst, Ordering::Release);
        let until = Instant::now() + duration;
        while Instant::now() < until {
            let minute = self.started.elapsed().as_secs() / 60;
            thread::sleep(Duration::from_millis(50)); // the load of this phase
            self.check();
            let now = self.started.elapsed().as_secs() / 60;
            if now > minute {
                println!("minute {now}: {}", self.summary());
            }
        }
        self.is_burst.store(false, Ordering::Release);
    }

    /// Runs `check` while no client is connected and no request is open.
    fn without_clients<T>(&self, check: impl FnOnce() -> T) -> T {
        self.are_clients_paused.store(true, Ordering::Release);
        wait_until("all clients are paused", || {
            (self.paused_clients.load(Ordering::Acquire) == CLIENTS as u64).then_some(())
        });
        let checked = check();
        self.are_clients_paused.store(false, Ordering::Release);
        wait_until("all clients have continued", || {
            (self.paused_clients.load(Ordering::Acquire) == 0 || self.has_ended()).then_some(())
        });
        checked
    }

    /// Whether a client continues. Waits while the clients are paused, after it has called `disconnect`.
    fn clients_run(&self, disconnect: impl FnOnce()) -> bool {
        if self.are_clients_paused.load(Ordering::Acquire) {
            disconnect();
            self.paused_clients.fetch_add(1, Ordering::AcqRel);
            while self.are_clients_paused.load(Ordering::Acquire) && !self.has_ended() {
                thread::sleep(Duration::from_millis(2)); // the client is paused
            }
            self.paused_clients.fetch_sub(1, Ordering::AcqRel);
        }
        !self.has_ended()
    }

    fn run_client(&self, number: usize) {
        let mut random = Random(self.seed.wrapping_mul(1000) + number as u64);
        let mut connection: Option<(Client, Arc<Lifetime>)> = None;
        while self.clients_run(|| connection = None) {
            let Some((mut client, lifetime)) = connection.take().or_else(|| self.connect()) else {
                thread::sleep(Duration::from_millis(2)); // the server is down
                continue;
            };
            if self.post(number, &mut client, &lifetime, &mut random) && random.below(50) > 0 {
                connection = Some((client, lifetime));
            }
            if !self.is_burst.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(random.below(PACE_MS))); // the pace of this client
            }
        }
    }

    fn connect(&self) -> Option<(Client, Arc<Lifetime>)> {
        let lifetime = self.lifetime.lock().unwrap().clone()?;
        match Client::try_connect(lifetime.address) {
            Ok(client) => Some((client, lifetime)),
            Err(_) if lifetime.is_stopping.load(Ordering::Acquire) => None,
            Err(error) => {
                self.ledger.violation(format!("can't connect: {error}"));
                None
            }
        }
    }

    /// Sends one request, and enters its outcome. Returns whether the connection can be used again.
    fn post(&self, number: usize, client: &mut Client, lifetime: &Lifetime, random: &mut Random) -> bool {
        let ids: Vec<Id> = (0..=random.below(MAX_REPORTS)).map(|_| self.ledger.begin(number)).collect();
        let reports: Vec<_> = ids.iter().map(|id| report(*id)).collect();
        let body = if random.below(2) == 0 { reports.join("\n") } else { format!("[{}]", reports.join(",")) };
        let sent = client.try_send(common::request(body.as_bytes()));
        let answer = sent.and_then(|()| client.try_any_answer());
        let (bounds, is_open) = match answer {
            Ok(answer) => {
                let json: Value = serde_json::from_str(&answer.body).unwrap_or_default();
                let problem = json["type"].as_str().and_then(|name| name.rsplit(':').next()).unwrap_or_default();
                let bounds = match (answer.status, problem) {
                    (200, _) if json["accepted"] == ids.len() => {
                        lifetime.acknowledged.fetch_add(ids.len() as u64, Ordering::AcqRel);
                        (1, 1)
                    }
                    (503, "disk-full") => {
                        self.refused_by_disk.fetch_add(1, Ordering::Relaxed);
                        (0, 0)
                    }
                    (503, "buffer-full" | "too-many-in-flight" | "stopping") => (0, 0),
                    (503, "not-durable") => (0, 1),
                    _ => {
                        self.ledger.violation(format!("unexpected answer: {} {}", answer.status, answer.body));
                        (0, 1)
                    }
                };
                (bounds, answer.headers.get("connection").is_none_or(|value| value != "close"))
            }
            Err(error) => {
                if !lifetime.is_stopping.load(Ordering::Acquire) {
                    self.ledger.violation(format!("no answer of a server that was not told to stop: {error}"));
                }
                ((0, 1), false)
            }
        };
        ids.iter().for_each(|id| self.ledger.finish(*id, bounds.0, bounds.1));
        is_open
    }

    fn run_collector(&self) {
        while !self.has_ended() {
            if self.collector.lock().unwrap().step(self) {
                thread::sleep(Duration::from_millis(2)); // how often the collector looks
            }
        }
    }

    /// Takes free space until the server notices, and then gives it back.
    fn fill_disk(&self, server: &Server, fault: FullDisk) {
        let path = self.file_system.path.join("filler");
        let filler = File::create(&path).unwrap();
        let (refused, failed, mut length) = (self.refused_by_disk.load(Ordering::Acquire), failed_flushes(server), 0);
        wait_until("the server notices that the disk is full", || {
            // Whatever becomes free is taken again.
            let more = self.file_system.free_bytes().saturating_sub(fault.left_bytes());
            // The file system needs some blocks for itself.
            for more in [more, more / 2, more / 16].into_iter().filter(|more| *more > 0) {
                if fallocate(&filler, FallocateFlags::empty(), length, more).is_ok() {
                    length += more;
                    break;
                }
            }
            self.check();
            let is_noticed = match fault {
                FullDisk::Refuses => self.refused_by_disk.load(Ordering::Acquire) > refused,
                FullDisk::Fails => failed_flushes(server) > failed,
            };
            is_noticed.then_some(())
        });
        assert_eq!(Samples::scrape(server).value("netwatch_disk_full"), u64::from(fault == FullDisk::Refuses));
        drop(filler);
        fs::remove_file(path).unwrap();
        let acknowledged = self.ledger.acknowledged.load(Ordering::Relaxed);
        wait_until("the server accepts reports again", || {
            let is_accepting = self.ledger.acknowledged.load(Ordering::Relaxed) > acknowledged;
            (is_accepting && Samples::scrape(server).value("netwatch_disk_full") == 0).then_some(())
        });
    }

    /// Checks the metrics of an idle server. `before` are the sums and the number of report files at its start.
    fn check_metrics(&self, server: &Server, lifetime: &Lifetime, before: (Sums, u64)) {
        let scraped = Samples::scrape(server);
        // Exact at once: the clients have all answers.
        let acknowledged = lifetime.acknowledged.load(Ordering::Acquire);
        assert_eq!(scraped.value("netwatch_reports_accepted_total"), acknowledged, "acknowledged reports");
        assert_eq!(scraped.value("netwatch_recovered_reports_total"), 0, "all stops are orderly");
        for reason in ["corrupt-journal", "corrupt-file"] {
            assert_eq!(scraped.value(&format!("netwatch_reports_lost_total{{reason=\"{reason}\"}}")), 0);
        }
        let positions = self.ledger.positions();
        wait_for("all acknowledged reports are in report files", || {
            self.ledger.missing(&positions).map_or(Ok(()), |id| Err(format!("{id:?} is missing")))
        });
        wait_for("the metrics of report files equal the directory, within the limit", || {
            let found = self.remaining();
            let scraped = Samples::scrape(server);
            let sums = self.collector.lock().unwrap().sums;
            let files = found.len() as u64;
            let bytes: u64 = found.iter().map(|(_, bytes)| bytes).sum();
            let pairs = [
                ("netwatch_file_bytes_total{kind=\"raw\"}", sums.raw - before.0.raw),
                ("netwatch_file_bytes_total{kind=\"zstd\"}", sums.zstd - before.0.zstd),
                ("netwatch_report_files", files),
                ("netwatch_report_files_bytes", bytes),
                ("netwatch_pruned_files_total", (before.1 + sums.files - before.0.files).saturating_sub(files)),
            ];
            let different = pairs.iter().find(|(name, expected)| scraped.value(name) != *expected);
            match different {
                Some((name, expected)) => Err(format!("{name} is {}, expected {expected}", scraped.value(name))),
                None => self.find_excess(&found).map_or(Ok(()), Err),
            }
        });
        self.check();
    }

    /// The report files that are left, sorted by name, with their sizes.
    fn remaining(&self) -> Vec<(String, u64)> {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let files = common::report_files(&self.data_dir).into_iter();
        files.filter_map(|path| Some((name(&path), path.metadata().ok()?.len()))).collect()
    }

    /// Says if the files exceed the limit by more than the newest file, or if a file was pruned before an older one.
    fn find_excess(&self, found: &[(String, u64)]) -> Option<String> {
        let bytes: u64 = found.iter().map(|(_, bytes)| bytes).sum();
        let (oldest, newest) = (found.first()?, found.last()?);
        let collector = self.collector.lock().unwrap();
        let expected: Vec<_> = collector.seen.range(oldest.0.clone()..).collect();
        if bytes > MAX_BYTES + newest.1 {
            Some(format!("{bytes} bytes are left"))
        } else if !expected
            .iter()
            .map(|(name, bytes)| (*name, *bytes))
            .eq(found.iter().map(|(name, bytes)| (name, bytes)))
        {
            Some(format!("the files that are left are not the youngest ones: {found:?}"))
        } else {
            None
        }
    }

    /// One server process: warm-up, load, burst, full disk, load, and an orderly stop.
    fn run_lifetime(&self, length: Duration, fault: FullDisk, is_last: bool) {
        let before = {
            // Files of the last shutdown do not count for this process.
            let mut collector = self.collector.lock().unwrap();
            collector.collect_all(self);
            (collector.sums, self.remaining().len() as u64)
        };
        let min_free_bytes = fault.min_free_bytes();
        let settings = [SETTINGS, &[("MIN_FREE_BYTES", &*min_free_bytes)]].concat();
        let mut server = Server::start_in(&self.data_dir, &settings);
        self.starts.fetch_add(1, Ordering::Relaxed);
        let lifetime = Arc::new(Lifetime {
            address: server.address,
            acknowledged: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
        });
        *self.lifetime.lock().unwrap() = Some(Arc::clone(&lifetime));
        self.load(length / 8, false);
        self.load(length / 8, true);
        let warm = self.without_clients(|| {
            wait_until("the server has closed all connections but that of the scrape", || {
                let scraped = Samples::scrape(&server);
                (scraped.value("netwatch_open_connections") <= 1).then(|| Usage::of(&scraped))
            })
        });
        self.load(length / 4, false);
        self.load(length / 4, true);
        self.fill_disk(&server, fault);
        self.load(length / 4, false);
        let stop = || {
            lifetime.is_stopping.store(true, Ordering::Release);
            server.signal(Signal::TERM);
        };
        self.without_clients(|| {
            self.check_metrics(&server, &lifetime, before);
            let used = wait_for("the server uses no more than after its warm-up", || {
                let used = Usage::of(&Samples::scrape(&server));
                let is_more = used.rss_bytes > warm.rss_bytes + MORE_RSS_BYTES
                    || used.descriptors > warm.descriptors + MORE_DESCRIPTORS
                    || used.threads > warm.threads + MORE_THREADS;
                if is_more { Err(format!("{used:?}, after the warm-up {warm:?}")) } else { Ok(used) }
            });
            println!("start {}: {warm:?} after the warm-up, {used:?} at the end", self.starts.load(Ordering::Relaxed));
            if is_last {
                // No more reports: the shutdown would publish them, and does not prune.
                *self.lifetime.lock().unwrap() = None;
                stop();
            }
        });
        if !is_last {
            let acknowledged = lifetime.acknowledged.load(Ordering::Acquire);
            wait_until("the clients send again", || {
                (lifetime.acknowledged.load(Ordering::Acquire) > acknowledged).then_some(())
            });
            stop();
        }
        assert_eq!(server.wait().code(), Some(0), "an orderly stop");
        *self.lifetime.lock().unwrap() = None;
        self.read_log(&server.log());
    }

    fn read_log(&self, log: &str) {
        assert!(!log.contains("panicked"), "{log}");
        for line in log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            if line["fields"]["message"] == "pruned" {
                let is_by_size = line["fields"]["age_seconds"].as_u64().unwrap() < MAX_AGE_SECONDS;
                self.pruned[usize::from(is_by_size)].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn run(&self, duration: Duration) {
        let lifetimes = (duration.as_secs() / 60).max(3) as u32;
        thread::scope(|scope| {
            let _end = EndOnDrop(self);
            let collector = scope.spawn(|| self.run_collector());
            let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || self.run_client(number))).collect();
            for number in 1..=lifetimes {
                let fault = if number % 2 == 0 { FullDisk::Fails } else { FullDisk::Refuses };
                self.run_lifetime(duration / lifetimes, fault, number == lifetimes);
            }
            self.has_ended.store(true, Ordering::Release);
            clients.into_iter().for_each(|client| client.join().unwrap());
            collector.join().unwrap();
            self.collector.lock().unwrap().collect_all(self);
        });
    }
}

/// Ends all threads of a run, also if the test panics.
struct EndOnDrop<'a>(&'a Soak);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Release);
    }
}

/// Calls `poll` until it succeeds. After `PATIENCE`, panics with the last error.
fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match poll() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "timed out waiting until {what}: {error}"),
        }
        thread::sleep(Duration::from_millis(20)); // time for a change
    }
}

/// The number of attempts to write a report file that have failed.
fn failed_flushes(server: &Server) -> u64 {
    let scraped = Samples::scrape(server);
    let failed =
        |(name, _): &(&String, &f64)| name.starts_with("netwatch_flushes_total{") && name.contains("\"error\"");
    scraped.0.iter().filter(failed).map(|(_, count)| *count as u64).sum()
}

/// The samples of a scrape: name with labels, and value.
struct Samples(BTreeMap<String, f64>);

impl Samples {
    fn scrape(server: &Server) -> Self {
        let head = format!("GET /metrics HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
        let answer = server.connect().ask(&head, b"");
        assert_eq!(answer.status, 200, "{answer:?}");
        let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.map(|line| line.rsplit_once(' ').unwrap());
        Self(samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect())
    }

    /// The value of a metric that counts something.
    fn value(&self, name: &str) -> u64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.0)) as u64
    }
}

impl Usage {
    fn of(samples: &Samples) -> Self {
        Self {
            rss_bytes: samples.value("process_resident_memory_bytes"),
            descriptors: samples.value("process_open_fds"),
            threads: samples.value("process_threads"),
        }
    }
}

#[test]
#[ignore = "takes 10 minutes and requires root: make soak"]
fn each_report_is_stored_once_and_the_metrics_are_exact_while_files_are_pruned_and_the_disk_fills() {
    let seconds = from_env("SOAK_SECONDS").unwrap_or(600);
    let seed = from_env("SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("SOAK_SECONDS={seconds} SOAK_SEED={seed}");
    let soak = Soak::new(seed);
    soak.run(Duration::from_secs(seconds));
    println!("end: {}", soak.summary());
    let violations = soak.ledger.close();
    let first = &violations[..violations.len().min(10)];
    assert!(violations.is_empty(), "{} violations, the first ones: {first:#?}", violations.len());
    for dir in ["journal", "tmp"] {
        assert_eq!(fs::read_dir(soak.data_dir.join(dir)).unwrap().count(), 0, "files are left in {dir}");
    }
    assert_eq!(soak.find_excess(&soak.remaining()), None);
    let [by_age, by_size] = soak.pruned.each_ref().map(|count| count.load(Ordering::Relaxed));
    // A shorter run may not reach both limits.
    assert!(seconds < 40 || (by_age > 0 && by_size > 0), "{by_age} files pruned by age, {by_size} by size");
}
