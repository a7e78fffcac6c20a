//! Two servers that share a data directory, and are killed and started again.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{server_command, wait_until};
use crate::ledger::Ledger;

/// Batches are small, so that flushes are frequent. Timeouts are short, so that slow clients come to their end.
const SETTINGS: &[(&str, &str)] = &[
    ("WORKERS", "2"),
    ("FLUSH_INTERVAL", "1s"),
    ("MAX_BODY_BYTES", "64KiB"),
    ("INFLIGHT_BYTES", "1MiB"),
    ("SPILL_BYTES", "32MiB"),
    ("MIN_FREE_BYTES", "8MiB"),
    ("DEDUP_WINDOW", "1h"),
    ("COMMIT_TIMEOUT", "2s"),
    ("MAX_CONNECTIONS", "512"),
    ("HEADER_TIMEOUT", "2s"),
    ("BODY_TIMEOUT", "3s"),
    ("KEEP_ALIVE_TIMEOUT", "10s"),
    ("SHUTDOWN_TIMEOUT", "2s"),
];

/// The settings in which the two servers differ.
const DIFFERENCES: [&[(&str, &str)]; 2] = [
    &[("ACK", "journal"), ("BATCH_BYTES", "256KiB"), ("BUFFER_BYTES", "2MiB"), ("DEBUG", "on")],
    // The compression is slow and the buffer is small, so that batches spill in a burst.
    &[
        ("ACK", "disk"),
        ("BATCH_BYTES", "128KiB"),
        ("BUFFER_BYTES", "512KiB"),
        ("ZSTD_LEVEL", "17"),
        ("ZSTD_THREADS", "1"),
    ],
];

/// Maximum time of a start or a stop. Faults of the disk can delay both.
const LIMIT: Duration = Duration::from_secs(120);

/// Lines of each log that are printed after a failure.
const LOG_LINES: usize = 200;

#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: Arc<Log>,
}

#[derive(Debug, Default)]
struct Log {
    last: Mutex<VecDeque<String>>,
    address: Mutex<Option<SocketAddr>>,
    is_unread: AtomicBool,
    has_ended: AtomicBool,
}

impl Log {
    fn read(&self, from: ChildStderr, ledger: &Ledger, spilled: &AtomicU64) {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if line.contains("panicked") {
                ledger.violation(format!("a server has panicked: {line}"));
            }
            if line.contains("\"message\":\"listening\"") {
                let line: serde_json::Value = serde_json::from_str(&line).unwrap();
                *self.address.lock().unwrap() = Some(line["fields"]["address"].as_str().unwrap().parse().unwrap());
            }
            if line.contains("\"message\":\"spilled\"") {
                spilled.fetch_add(1, Ordering::Relaxed);
            }
            let mut last = self.last.lock().unwrap();
            last.push_back(line);
            if last.len() > LOG_LINES {
                last.pop_front();
            }
            drop(last);
            while self.is_unread.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(10)); // the fault that nobody reads the log
            }
        }
        self.has_ended.store(true, Ordering::Release);
    }

    fn text(&self) -> String {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|line| format!("{line}\n")).collect()
    }
}

/// Nobody reads the log of one process until this is dropped.
pub(crate) struct UnreadLog(Arc<Log>);

impl Drop for UnreadLog {
    fn drop(&mut self) {
        self.0.is_unread.store(false, Ordering::Release);
    }
}

/// What one process uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) rss_kib: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
}

impl Process {
    /// A process that has started, or the reason why it has not.
    fn start(slot: &Slot) -> Result<(Self, SocketAddr), String> {
        let settings = [SETTINGS, DIFFERENCES[slot.number]].concat();
        let mut command = server_command(&slot.data_dir, &settings);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (log, from) = (Arc::new(Log::default()), child.stderr.take().unwrap());
        let (ledger, spilled) = (Arc::clone(&slot.ledger), Arc::clone(&slot.spilled));
        let reader = Arc::clone(&log);
        thread::spawn(move || reader.read(from, &ledger, &spilled));
        let mut process = Self { child, log };
        let deadline = Instant::now() + LIMIT;
        loop {
            let address = *process.log.address.lock().unwrap();
            if let Some(address) = address {
                return Ok((process, address));
            }
            if let Some(status) = process.child.try_wait().unwrap() {
                process.wait_for_log();
                return Err(format!("{status}: {}", process.log.text()));
            }
            if Instant::now() > deadline {
                return Err(format!("not started within {LIMIT:?}: {}", process.log.text()));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn wait_for_log(&self) {
        wait_until("the log ends", || self.log.has_ended.load(Ordering::Acquire).then_some(()));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        None
    }

    pub(crate) fn stop_reading_log(&self) -> UnreadLog {
        self.log.is_unread.store(true, Ordering::Release);
        UnreadLog(Arc::clone(&self.log))
    }

    fn usage(&self) -> Usage {
        let dir = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(dir.join("status")).unwrap();
        let number = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
        };
        let descriptors = fs::read_dir(dir.join("fd")).unwrap().count() as u64;
        Usage { rss_kib: number("VmRSS"), descriptors, threads: number("Threads") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            // A stopped process also ends.
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
        if thread::panicking() {
            eprintln!("server log:\n{}", self.log.text());
        }
    }
}

/// Where clients find a server. Each process has another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) slot: usize,
    pub(crate) address: SocketAddr,
    pub(crate) generation: u64,
}

/// One of the servers.
#[derive(Debug)]
pub(crate) struct Slot {
    number: usize,
    data_dir: PathBuf,
    ledger: Arc<Ledger>,
    target: Mutex<Option<Target>>,
    /// Locked by the fault that controls this server. `None` before the start and after the end.
    process: Mutex<Option<Process>>,
    pub(crate) starts: AtomicU64,
    pub(crate) failed_starts: AtomicU64,
    /// Batches that spilled.
    pub(crate) spilled: Arc<AtomicU64>,
}

impl Slot {
    pub(crate) fn new(number: usize, data_dir: &Path, ledger: &Arc<Ledger>) -> Self {
        Self {
            number,
            data_dir: data_dir.to_owned(),
            ledger: Arc::clone(ledger),
            target: Mutex::default(),
            process: Mutex::default(),
            starts: AtomicU64::new(0),
            failed_starts: AtomicU64::new(0),
            spilled: Arc::default(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn target(&self) -> Option<Target> {
        *self.target.lock().unwrap()
    }

    /// Starts a process. A start fails while the disk is full, so it is repeated.
    pub(crate) fn start(&self, process: &mut Option<Process>) {
        let deadline = Instant::now() + LIMIT;
        loop {
            match Process::start(self) {
                Ok((started, address)) => {
                    let generation = self.starts.fetch_add(1, Ordering::Relaxed);
                    *self.target.lock().unwrap() = Some(Target { slot: self.number, address, generation });
                    *process = Some(started);
                    return;
                }
                Err(reason) if Instant::now() > deadline || reason.contains("not started") => {
                    self.ledger.violation(format!("server {} cannot start: {reason}", self.number));
                    return;
                }
                Err(_) => {
                    self.failed_starts.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(200)); // the disk may have space by then
                }
            }
        }
    }

    /// Waits until a process that got a signal has ended. Its exit code must be `code`.
    pub(crate) fn expect_end(&self, process: &mut Option<Process>, code: Option<i32>) {
        let Some(mut ended) = process.take() else { return };
        match ended.wait() {
            None => self.ledger.violation(format!("server {} did not end: {}", self.number, ended.log.text())),
            Some(status) if status.code() != code => {
                ended.wait_for_log();
                self.ledger.violation(format!("server {}: {status}, not {code:?}: {}", self.number, ended.log.text()));
            }
            Some(_) => {}
        }
        // A log that nobody reads has not ended yet. Its reader continues.
        *self.target.lock().unwrap() = None;
    }

    /// Like `expect_end`, but the process may have ended before SIGKILL came.
    pub(crate) fn expect_killed_or_ended(&self, process: &mut Option<Process>) {
        let has_ended = process.as_mut().and_then(Process::wait).and_then(|status| status.code());
        self.expect_end(process, has_ended.map(|_| 0));
    }

    /// Shuts the server down.
    pub(crate) fn stop(&self) {
        let mut process = self.lock();
        if let Some(process) = &*process {
            process.signal(Signal::TERM);
        }
        self.expect_end(&mut process, Some(0));
    }

    pub(crate) fn usage(&self) -> Option<Usage> {
        self.lock().as_ref().map(Process::usage)
    }

    /// Checks that the process runs, unless a fault controls it now.
    pub(crate) fn expect_running(&self) {
        let Ok(mut process) = self.process.try_lock() else { return };
        if let Some(status) = process.as_mut().and_then(|process| process.child.try_wait().unwrap()) {
            self.ledger.violation(format!("server {} has ended: {status}", self.number));
        }
    }

    /// What the process uses, unless a fault controls it now.
    pub(crate) fn process_usage(&self) -> Option<Usage> {
        self.process.try_lock().ok().and_then(|process| process.as_ref().map(Process::usage))
    }

    pub(crate) fn log(&self) -> String {
        self.lock().as_ref().map_or_else(String::new, |process| process.log.text())
    }
}
