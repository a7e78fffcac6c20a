//! Fault injection with strace: any system call may fail. No acknowledged report is lost, and the server recovers
//! without a restart.
//!
//! strace injects the faults into the unmodified program. The tests require strace 4.22 or newer, and permission to
//! trace a process that strace did not start: root, or `kernel.yama.ptrace_scope` 0. `make faults` runs them. They are
//! ignored by default.

mod common;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Answer, Server, command, cpu_time, stored, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// Small batches and a small buffer, so that a batch passes through all its states within a moment.
const SMALL_BUFFER: [(&str, &str); 5] = [
    ("MAX_BODY_BYTES", "1KiB"),
    ("BATCH_BYTES", "4KiB"),
    ("BUFFER_BYTES", "32KiB"),
    ("FLUSH_INTERVAL", "20ms"),
    ("WORKERS", "2"),
];

/// A buffer so large that no request waits for capacity. The flush thread wakes waiting requests with a write, and the
/// runtime panics if that write fails.
const LARGE_BUFFER: [(&str, &str); 2] = [("BATCH_BYTES", "1MiB"), ("BUFFER_BYTES", "8MiB")];

/// A strace process that injects faults into a server.
struct Faults {
    strace: Child,
    trace: PathBuf,
    _dir: tempfile::TempDir,
}

impl Faults {
    /// Injects faults into all threads, or into the thread with this name. strace counts the calls of each thread.
    fn begin(server: &Server, thread: Option<&str>, inject: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (trace, messages) = (dir.path().join("trace"), dir.path().join("messages"));
        let pid = server.id();
        // A thread sets its name after it has started.
        let target = thread.map_or(pid, |name| wait_until("the thread runs", || thread_id(pid, name)));
        let strace = strace(&trace, inject)
            .args(if thread.is_some() { &[][..] } else { &["-f"] })
            .args(["-p", &target.to_string()])
            .stderr(fs::File::create(&messages).unwrap())
            .spawn()
            .unwrap();
        let faults = Self { strace, trace, _dir: dir };
        wait_until("strace has attached", || fs::read_to_string(&messages).unwrap().contains("attached").then_some(()));
        faults
    }

    /// Stops the injection. Returns the trace.
    fn end(mut self) -> String {
        // strace detaches from all threads before it exits.
        kill_process(Pid::from_child(&self.strace), Signal::INT).unwrap();
        wait_until("strace exits", || self.strace.try_wait().unwrap());
        fs::read_to_string(&self.trace).unwrap()
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        if self.strace.try_wait().unwrap().is_none() {
            self.strace.kill().unwrap();
            self.strace.wait().unwrap();
        }
    }
}

fn strace(trace: &Path, inject: &[&str]) -> Command {
    let mut strace = Command::new("strace");
    strace.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    // Print whole strings, and the paths of file descriptors.
    strace.args(["-y", "-v", "-s", "65536", "-o"]).arg(trace).stdin(Stdio::null());
    let calls: Vec<_> = inject.iter().map(|inject| inject.split(':').next().unwrap()).collect();
    strace.args(["-e", &format!("trace={}", calls.join(","))]);
    strace.args(inject.iter().flat_map(|inject| ["-e".to_owned(), format!("inject={inject}")]));
    strace
}

fn thread_id(pid: u32, name: &str) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|thread| thread.unwrap());
    // A thread may end before its name is read.
    let name_of = |thread: &fs::DirEntry| fs::read_to_string(thread.path().join("comm")).ok();
    let mut named = threads.filter(|thread| name_of(thread).is_some_and(|comm| comm.trim_end() == name));
    named.next()?.file_name().to_str()?.parse().ok()
}

/// The reports that clients sent, by answer.
#[derive(Default)]
struct Ledger {
    acknowledged: Vec<String>,
    /// Refused because the buffer was full. They must not be in the files.
    refused: Vec<String>,
    /// Refused as not durable. They may be in the files.
    not_durable: Vec<String>,
}

impl Ledger {
    /// Sends a report. Returns whether the server acknowledged it.
    fn send(&mut self, client: &mut common::Client, report: String) -> bool {
        let answer = client.post(&report);
        self.record(answer, report)
    }

    /// Sends reports until the server has acknowledged `count` of them.
    fn send_until_acknowledged(&mut self, server: &Server, phase: &str, count: usize) {
        let (mut connection, mut n) = (server.connect(), 0..);
        for _ in 0..count {
            let acknowledged = || self.send(&mut connection, report(phase, 0, n.next().unwrap())).then_some(());
            wait_until(&format!("a report is acknowledged {phase} the fault"), acknowledged);
        }
    }

    fn record(&mut self, answer: Answer, report: String) -> bool {
        if answer.status == 200 {
            self.acknowledged.push(report);
            return true;
        }
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
        let is_full = answer.is_full();
        answer.assert_problem(503, if is_full { "buffer-full" } else { "not-durable" });
        if is_full { &mut self.refused } else { &mut self.not_durable }.push(report);
        false
    }

    fn add(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.refused.extend(other.refused);
        self.not_durable.extend(other.not_durable);
    }

    /// Checks that every acknowledged report is stored once, and that no refused report is stored.
    fn check(&self, stored: &[String]) {
        let unique: HashSet<_> = stored.iter().collect();
        assert_eq!(unique.len(), stored.len(), "a report is stored twice");
        let lost: Vec<_> = self.acknowledged.iter().filter(|report| !unique.contains(report)).collect();
        assert!(lost.is_empty(), "acknowledged but lost: {lost:?}");
        let refused: Vec<_> = self.refused.iter().filter(|report| unique.contains(report)).collect();
        assert!(refused.is_empty(), "refused but stored: {refused:?}");
    }
}

/// What clients may see during a fault.
#[derive(Clone, Copy, PartialEq)]
enum Clients {
    MayBeRefused,
    /// A request may be slow or get `buffer-full`. It never gets `not-durable`, and later reports are acknowledged.
    MayBeDelayed,
}

/// A server with an injected fault, and the reports that it has received.
struct FaultyServer {
    server: Server,
    faults: Faults,
    ledger: Ledger,
}

fn report(phase: &str, client: usize, n: usize) -> String {
    format!("{{\"phase\":\"{phase}\",\"client\":{client},\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(400))
}

impl FaultyServer {
    fn start(data_dir: &Path, ack: &str, thread: Option<&str>, fault: &str) -> Self {
        let buffer = if thread.is_some() { &LARGE_BUFFER[..] } else { &[] };
        let server = Server::start_in(data_dir, &[&SMALL_BUFFER[..], buffer, &[("ACK", ack)]].concat());
        let mut ledger = Ledger::default();
        ledger.send_until_acknowledged(&server, "before", 10);

        let faults = Faults::begin(&server, thread, &[fault]);
        ledger.add(send_from_many(4, |client| {
            let (mut connection, mut ledger) = (server.connect(), Ledger::default());
            for n in 0..40 {
                ledger.send(&mut connection, report("during", client, n));
                if ledger.refused.len() == 2 {
                    break; // each refusal takes a second
                }
            }
            ledger
        }));
        Self { server, faults, ledger }
    }

    /// Checks that the server pauses between retries, and works again when the fault is over. After a shutdown, all
    /// acknowledged reports must be stored.
    fn assert_recovers(self, fault: &str, clients: Clients) {
        let Self { server, faults, mut ledger } = self;
        // Now the server only retries. Its system calls also use processor time in strace.
        let cpu_time = || cpu_time(server.id()) + cpu_time(faults.strace.id());
        // A server that retries without a pause never becomes idle.
        wait_until(&format!("the server pauses between retries: {fault}"), || {
            let (before, started) = (cpu_time(), Instant::now());
            thread::sleep(Duration::from_millis(500)); // the measurement period
            (cpu_time() - before < started.elapsed() * 15 / 100).then_some(())
        });
        if clients == Clients::MayBeDelayed {
            // By now the server has used all journals that it created before the fault.
            ledger.send_until_acknowledged(&server, "still during", 10);
            assert_eq!(ledger.not_durable.len(), 0, "{fault}");
        }
        let data_dir = server.data_dir.to_str().unwrap();
        // strace can print one call on two lines. The second line does not contain the path.
        let is_ours = |call: &&str| call.contains(data_dir) || call.contains(" resumed>");
        let has_happened = || fs::read_to_string(&faults.trace).unwrap().contains("(INJECTED)").then_some(());
        wait_until(&format!("the fault happens: {fault}"), has_happened);
        let traced = faults.end();
        let mut injected = traced.lines().filter(|call| call.contains("(INJECTED)")).filter(is_ours);
        assert!(injected.next().is_some(), "{fault}: no fault was injected:\n{traced}");
        ledger.send_until_acknowledged(&server, "after", 10);
        ledger.check(&server.stop());
    }

    /// Kills the server during the fault. Checks that a recovery without the fault finds all acknowledged reports.
    fn assert_recoverable_after_kill(mut self) {
        self.server.signal(Signal::KILL);
        self.server.wait();
        drop(self.faults);
        let recovered = recover(&self.server.data_dir).output().unwrap();
        assert!(recovered.status.success(), "{recovered:?}");
        self.ledger.check(&self.server.stored());
        assert_nothing_is_left(&self.server.data_dir);
    }
}

/// Calls `send` for several clients at the same time. Returns the ledger of all their reports.
fn send_from_many(clients: usize, send: impl Fn(usize) -> Ledger + Sync) -> Ledger {
    let mut ledger = Ledger::default();
    thread::scope(|scope| {
        let send = &send;
        let clients: Vec<_> = (0..clients).map(|client| scope.spawn(move || send(client))).collect();
        clients.into_iter().for_each(|client| ledger.add(client.join().unwrap()));
    });
    ledger
}

/// Tests each fault in all threads, or in the thread with this name. Tests `ACK=journal` and `ACK=disk`, each with a
/// shutdown after the fault and with a kill during the fault. All these tests run at the same time.
fn assert_no_report_is_lost(thread: Option<&str>, faults: &[&str], clients: Clients) {
    thread::scope(|scope| {
        for fault in faults {
            for ack in ["journal", "disk"] {
                let start = move |dir: &Path| FaultyServer::start(dir, ack, thread, fault);
                scope.spawn(move || start(tempfile::tempdir().unwrap().path()).assert_recovers(fault, clients));
                scope.spawn(move || start(tempfile::tempdir().unwrap().path()).assert_recoverable_after_kill());
            }
        }
    });
}

#[test]
#[ignore = "needs strace: make faults"]
fn errors_of_journal_writes_lose_no_acknowledged_report() {
    let faults = ["pwritev:error=ENOSPC", "pwritev:error=EIO:when=1", "pwritev:error=EIO:when=2+3"];
    assert_no_report_is_lost(None, &faults, Clients::MayBeRefused);
    assert_no_report_is_lost(None, &["pwritev:error=EINTR:when=1..3"], Clients::MayBeDelayed);
}

#[test]
#[ignore = "needs strace: make faults"]
fn errors_of_syncs_lose_no_acknowledged_report() {
    let faults = ["error=EIO:when=1", "error=EIO", "error=ENOSPC", "error=EIO:when=2+2", "error=ENOSPC:when=1..4"];
    let faults = faults.map(|fault| format!("fsync,fdatasync:{fault}"));
    assert_no_report_is_lost(None, &faults.each_ref().map(String::as_str), Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn errors_of_renames_lose_no_acknowledged_report() {
    let faults = ["renameat2:error=ENOSPC", "renameat2:error=EIO:when=1", "rename:error=EIO:when=1..3"];
    assert_no_report_is_lost(None, &faults, Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn errors_when_files_are_opened_lose_no_acknowledged_report() {
    let faults = ["openat:error=ENOSPC", "openat:error=EMFILE", "openat:error=EIO:when=1", "openat:error=EIO:when=2+3"];
    assert_no_report_is_lost(None, &faults, Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn errors_of_journal_preallocation_lose_no_acknowledged_report() {
    let faults = ["fallocate:error=ENOSPC", "fallocate:error=EIO:when=1..2", "fallocate:error=EINTR:when=1..2"];
    assert_no_report_is_lost(None, &faults, Clients::MayBeRefused);
    assert_no_report_is_lost(None, &["fallocate:error=EOPNOTSUPP"], Clients::MayBeDelayed);
}

#[test]
#[ignore = "needs strace: make faults"]
fn errors_when_files_are_removed_lose_no_acknowledged_report() {
    let faults = ["unlink:error=EIO", "unlink:error=EIO:when=1", "unlink:error=EROFS:when=2+2"];
    assert_no_report_is_lost(None, &faults, Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn errors_of_report_file_writes_lose_no_acknowledged_report() {
    // Only in the flush thread: other threads write to sockets, and to wake threads. The faults also affect the log
    // lines of the flush thread.
    let faults = ["write:error=ENOSPC", "write:error=EIO:when=1..4", "write:error=EIO:when=2..3"];
    assert_no_report_is_lost(Some("flush"), &faults, Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn errors_of_calls_that_rarely_fail_lose_no_acknowledged_report() {
    let faults =
        ["flock:error=ENOLCK", "mkdir:error=EIO", "statx:error=EIO", "utimensat:error=EPERM", "statfs:error=EIO"];
    assert_no_report_is_lost(None, &faults, Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn every_request_gets_an_answer_when_no_thread_can_be_started() {
    // The first sync may need a thread of the runtime that has not been started yet, or that has ended.
    let server = Server::start(&[("ACK", "disk")]);
    let faults = Faults::begin(&server, None, &["clone3,clone:error=EAGAIN"]);
    let mut ledger = Ledger::default();
    ledger.send(&mut server.connect(), report("during", 0, 0));
    ledger.send(&mut server.connect(), report("during", 0, 1));
    faults.end();
    ledger.send_until_acknowledged(&server, "after", 1);
    ledger.check(&server.stop());
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_shutdown_completes_when_no_thread_can_be_started() {
    for ack in ["memory", "journal", "disk"] {
        let server = Server::start(&[("ACK", ack)]);
        let mut ledger = Ledger::default();
        assert!(ledger.send(&mut server.connect(), report("before", 0, 0)));
        let faults = Faults::begin(&server, None, &["clone3,clone:error=EAGAIN"]);
        ledger.check(&server.stop());
        drop(faults);
    }
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_recovery_completes_when_no_thread_can_be_started() {
    let mut server = Server::start(&[("ZSTD_THREADS", "4")]);
    server.post("{}").assert_ok();
    let faults = Faults::begin(&server, None, &["clone3,clone:error=EAGAIN"]);
    for n in 1..4 {
        let journal = format!("journal/reports-20261122T150512.12345678{n}Z-5f3a9c01.jsonl");
        fs::write(server.data_dir.join(journal), "{}\n").unwrap();
    }
    wait_until("all journals are recovered", || (server.count_in_log("recovered") == 3).then_some(()));
    assert!(faults.end().contains("(INJECTED)"));
    assert_eq!(server.stop().len(), 4);
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_sync_that_hangs_blocks_neither_clients_nor_the_shutdown() {
    let mut server = Server::start(&[("ACK", "disk")]);
    let faults = Faults::begin(&server, None, &["fdatasync:delay_enter=600s"]);
    // One request becomes the leader and syncs. The others wait for the leader.
    let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(common::request(b"{\"n\":1}")));
    for client in &mut clients {
        client.answer().assert_problem(503, "not-durable");
    }
    server.signal(Signal::TERM);
    server.wait_for_log("stopped; all reports are on disk", |_| true);
    // strace must end, because it delays the exit of the server until the delayed call returns.
    drop(faults);
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(server.stored(), ["{\"n\":1}"; 4]);
}

#[test]
#[ignore = "requires strace: make faults"]
fn a_connection_that_cannot_be_accepted_during_the_shutdown_does_not_prevent_the_last_flush() {
    let mut server = Server::start(&[("ACK", "memory")]);
    (0..5).for_each(|_| server.post("{\"n\":1}").assert_ok());
    let faults = Faults::begin(&server, None, &["epoll_ctl:error=ENOMEM"]);
    let waiting = server.connect();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(faults.end().contains("(INJECTED)"));
    drop(waiting);
    assert_eq!(server.stored().len(), 5);
}

#[test]
#[ignore = "requires strace: make faults"]
fn a_recovery_does_not_list_the_report_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("journal")).unwrap();
    fs::write(dir.path().join("journal/reports-20261122T150512.123456789Z-5f3a9c01.jsonl"), "{}\n").unwrap();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut command = strace(trace.path(), &["getdents64:delay_exit=1"]);
    let program = recover(dir.path());
    let output = command.arg(program.get_program()).args(program.get_args()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let traced = fs::read_to_string(trace.path()).unwrap();
    assert!(traced.contains("/journal>"), "{traced}");
    assert!(!traced.contains(&format!("{}>", dir.path().display())), "{traced}");
}

/// All file system calls of the flush thread and of a recovery.
const CALLS: [&str; 11] =
    ["openat", "flock", "write", "utimensat", "fsync", "rename", "renameat2", "unlink", "close", "mkdir", "getdents64"];

#[test]
#[ignore = "needs strace: make faults"]
fn a_kill_at_any_system_call_of_a_flush_leaves_each_report_stored_once() {
    // If `first` is not empty, the flush fails with this error, and the kill can hit the retry.
    for first in ["", "fsync:error=ENOSPC:when=1", "renameat2:error=ENOSPC:when=1"] {
        for call in CALLS.into_iter().filter(|call| first.split(':').next() != Some(call)) {
            for nth in 1.. {
                let dir = tempfile::tempdir().unwrap();
                let mut server = Server::start_in(dir.path(), &[("FLUSH_INTERVAL", "1h")]);
                server.post("{\"n\":1}").assert_ok();
                let kill = format!("{call}:error=EIO:signal=KILL:when={nth}");
                let inject = [first, &kill].into_iter().filter(|inject| !inject.is_empty());
                let faults = Faults::begin(&server, Some("flush"), &inject.collect::<Vec<_>>());
                server.signal(Signal::TERM);
                let survived = server.wait().success();
                drop(faults);
                let recovered = recover(dir.path()).output().unwrap();
                assert!(recovered.status.success(), "{first} {kill}: {recovered:?}");
                assert_eq!(stored(dir.path()), ["{\"n\":1}"], "{first} {kill}");
                assert_nothing_is_left(dir.path());
                if survived {
                    break;
                }
            }
        }
    }
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_second_recovery_completes_one_that_failed_or_was_killed_at_any_system_call() {
    const JOURNAL: &str = "reports-20261122T150512.123456789Z-5f3a9c01.jsonl";
    const CORRUPT: &str = "{\"n\":\u{1}}\n{\"n\":";
    for call in CALLS {
        for fault in ["error=EIO:signal=KILL", "error=EIO", "error=ENOSPC"] {
            for nth in 1.. {
                let dir = tempfile::tempdir().unwrap();
                fs::create_dir(dir.path().join("journal")).unwrap();
                let journal = format!("{{\"n\":1}}\n{{\"n\":2}}\n{CORRUPT}\0\0\0\0");
                fs::write(dir.path().join("journal").join(JOURNAL), journal).unwrap();

                let trace = tempfile::NamedTempFile::new().unwrap();
                let fault = format!("{call}:{fault}:when={nth}");
                let mut command = strace(trace.path(), &[&fault]);
                let program = recover(dir.path());
                let first = command.arg(program.get_program()).args(program.get_args()).output().unwrap();
                let killed = first.status.code().is_none();
                let was_injected = killed || fs::read_to_string(trace.path()).unwrap().contains("(INJECTED)");

                let second = recover(dir.path()).output().unwrap();
                assert!(second.status.success(), "{fault}: {second:?}");
                assert_eq!(stored(dir.path()), ["{\"n\":1}", "{\"n\":2}"], "{fault}");
                assert_eq!(
                    fs::read_to_string(dir.path().join("quarantine").join(JOURNAL)).unwrap(),
                    CORRUPT,
                    "{fault}"
                );
                assert_nothing_is_left(dir.path());
                if !was_injected {
                    break;
                }
            }
        }
    }
}

#[test]
#[ignore = "needs strace: make faults"]
fn reports_are_accepted_during_a_recovery() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal/reports-20261122T150512.123456789Z-5f3a9c01.jsonl");
    fs::create_dir(journal.parent().unwrap()).unwrap();
    fs::write(&journal, "{\"n\":1}\n").unwrap();
    let trace = tempfile::NamedTempFile::new().unwrap();
    // Only the creation of a report file calls utimensat. With `-D`, strace runs as a grandchild, and the process that
    // the test starts becomes the server.
    let mut command = strace(trace.path(), &["utimensat:delay_enter=60s"]);
    command.args(["-f", "-D"]).arg(common::command(dir.path()).get_program());
    let mut server = Server::spawn_from(command, dir.path(), &[], None);
    server.post("{\"n\":2}").assert_ok();
    let is_temporary = |name: OsString| name.as_encoded_bytes().starts_with(b".reports-");
    wait_until("the recovery creates a temporary file", || {
        fs::read_dir(dir.path().join("tmp")).unwrap().any(|file| is_temporary(file.unwrap().file_name())).then_some(())
    });
    server.post("{\"n\":3}").assert_ok();
    assert!(stored(dir.path()).is_empty());
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).unwrap();
    server.signal(Signal::KILL);
    // strace must be killed, too. It can keep a killed thread until the delayed call returns.
    kill_process(Pid::from_raw(tracer.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    server.wait();
    assert!(recover(dir.path()).output().unwrap().status.success());
    assert_eq!(stored(dir.path()), ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}"]);
}

fn recover(dir: &Path) -> Command {
    let mut recover = command(dir);
    recover.arg("recover").arg(dir);
    recover
}

/// Checks that no journals and no temporary files are left.
fn assert_nothing_is_left(dir: &Path) {
    let files = |dir: &Path| fs::read_dir(dir).into_iter().flatten().map(|file| file.unwrap().path());
    assert_eq!(files(&dir.join("tmp")).chain(files(&dir.join("journal"))).next(), None);
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_sync_that_succeeds_after_a_failed_sync_acknowledges_nothing() {
    let settings = [("ACK", "disk"), ("WORKERS", "2"), ("BATCH_BYTES", "64KiB"), ("MAX_BODY_BYTES", "60KiB")];
    let server = Server::start(&settings);
    // Every other sync of each thread fails, so syncs often succeed after a failed sync. The delay of pwritev only gets
    // the writes into the trace.
    let faults = Faults::begin(&server, None, &["fdatasync:error=EIO:when=1+2", "pwritev:delay_exit=1"]);
    let ledger = send_from_many(32, |client| {
        let (mut connection, mut ledger) = (server.connect(), Ledger::default());
        for n in 0..100 {
            ledger.send(&mut connection, format!("{{\"id\":\"{client}-{n}\"}}"));
        }
        ledger
    });
    let synced = synced(&faults.end());
    let early: Vec<_> = ledger.acknowledged.iter().filter(|report| !synced.contains(*report)).take(5).collect();
    assert!(early.is_empty(), "acknowledged but not synced: {early:?}");
    assert!(!ledger.acknowledged.is_empty() && !ledger.not_durable.is_empty());
    ledger.check(&server.stop());
}

/// The reports in a trace that were written to a journal and synced before the first failed call on that journal.
fn synced(traced: &str) -> HashSet<String> {
    let mut unfinished: HashMap<&str, &str> = HashMap::new();
    // For each journal path, the written reports that are not synced. `None` after a failed call.
    let mut written: HashMap<String, Option<Vec<String>>> = HashMap::new();
    let mut synced = HashSet::new();
    for line in traced.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, start);
            continue;
        }
        let start = if call.trim_start().starts_with("<... ") { unfinished[thread] } else { call };
        let Some(path) = start.split(['<', '>']).nth(1).filter(|path| path.contains("/journal/")) else { continue };
        let reports = written.entry(path.to_owned()).or_insert_with(|| Some(Vec::new()));
        if call.contains("= -1 ") {
            *reports = None;
        } else if let Some(reports) = reports {
            if start.trim_start().starts_with("fdatasync") {
                synced.extend(reports.drain(..));
            } else {
                let text = start.split("iov_base=\"").nth(1).unwrap().split("\", iov_len").next().unwrap();
                reports.extend(text.replace("\\\"", "\"").split("\\n").map(str::to_owned));
            }
        }
    }
    synced
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_leader_that_starts_after_the_flush_of_its_batch_leaves_no_journal() {
    let settings = [("ACK", "disk"), ("FLUSH_INTERVAL", "1ms"), ("WORKERS", "1")];
    let server = Server::start(&settings);
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    // A leader yields to other requests before it writes. The delay of recvfrom makes each of these requests take
    // longer than a flush. The other delays only get the calls into the trace.
    let faults = Faults::begin(&server, None, &["recvfrom:delay_enter=50ms", "renameat2,unlink:delay_exit=1"]);
    let mut ledger = Ledger::default();
    for n in 0..10 {
        let report = |client: usize| format!("{{\"id\":\"{client}-{n}\"}}");
        clients.iter_mut().enumerate().for_each(|(n, client)| client.send(common::request(report(n).as_bytes())));
        clients.iter_mut().enumerate().for_each(|(n, client)| assert!(ledger.record(client.answer(), report(n))));
    }
    let flush = thread_id(server.id(), "flush").unwrap().to_string();
    let journals = || fs::read_dir(server.data_dir.join("journal")).unwrap().map(|file| file.unwrap().file_name());
    let is_named = |name: OsString| name.as_encoded_bytes()[0] != b'.';
    wait_until("all journals are removed", || (!journals().any(is_named)).then_some(()));
    let traced = faults.end();
    drop(clients);

    let calls = |call: &'static str| traced.lines().filter(move |line| line.contains(call));
    let is_journal = |path: &&str| path.contains("/journal/reports-");
    let renamed = || calls("renameat2(").map(|line| line.split('"').nth(3).unwrap());
    let discards = calls("unlink(")
        .filter(|line| line.starts_with(&format!("{flush} ")))
        .map(|line| line.split('"').nth(1).unwrap());
    let discarded: HashSet<_> = discards.filter(is_journal).collect();
    let left: Vec<_> = renamed().filter(is_journal).filter(|journal| !discarded.contains(journal)).collect();
    assert!(left.is_empty(), "journals that the flush thread did not remove: {left:?}");
    let (named, published): (Vec<_>, Vec<_>) = renamed().partition(is_journal);
    assert!(published.len() > named.len(), "no leader started after the flush of its batch");
    ledger.check(&server.stop());
}
