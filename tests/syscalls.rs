//! A system call that fails costs no acknowledged report, whichever it is, and service comes back by itself.
//!
//! The faults are injected by strace into the program as it is, so these tests need strace (4.22 or newer) and the
//! right to trace a process that it did not start: root, or `kernel.yama.ptrace_scope` 0. They are ignored unless asked
//! for: `make faults`.

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

/// Batches are small and the buffer is, so that all that can happen to a batch happens within a moment.
const SMALL: [(&str, &str); 5] = [
    ("MAX_BODY_BYTES", "1KiB"),
    ("BATCH_BYTES", "4KiB"),
    ("BUFFER_BYTES", "32KiB"),
    ("FLUSH_INTERVAL", "20ms"),
    ("WORKERS", "2"),
];

/// So much that nobody waits for room: a flush task that is refused its writes would be refused the one that wakes them,
/// which ends in a panic of the runtime.
const AMPLE: [(&str, &str); 2] = [("BATCH_BYTES", "1MiB"), ("BUFFER_BYTES", "8MiB")];

/// strace, while it injects faults into a server.
struct Faults {
    strace: Child,
    trace: PathBuf,
    _dir: tempfile::TempDir,
}

impl Faults {
    /// Has calls fail from now on, in all threads or in the one of this name. strace counts calls for each thread.
    fn begin(server: &Server, thread: Option<&str>, inject: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (trace, told) = (dir.path().join("trace"), dir.path().join("told"));
        let pid = server.id();
        // A thread gives itself its name.
        let of = thread.map_or(pid, |name| wait_until("the thread runs", || thread_id(pid, name)));
        let strace = strace(&trace, inject)
            .args(if thread.is_some() { &[][..] } else { &["-f"] })
            .args(["-p", &of.to_string()])
            .stderr(fs::File::create(&told).unwrap())
            .spawn()
            .unwrap();
        let faults = Self { strace, trace, _dir: dir };
        wait_until("strace has attached", || fs::read_to_string(&told).unwrap().contains("attached").then_some(()));
        faults
    }

    /// Lets calls do what they are for again. Returns what was traced.
    fn end(mut self) -> String {
        // It lets go of all threads before it ends.
        kill_process(Pid::from_child(&self.strace), Signal::INT).unwrap();
        wait_until("strace ends", || self.strace.try_wait().unwrap());
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
    // Whole strings, and the paths of file descriptors.
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

/// Reports that were sent, by their answers.
#[derive(Default)]
struct Sent {
    kept: Vec<String>,
    refused: Vec<String>,
    /// Refused after they were in a batch: they may be in the files.
    not_kept: Vec<String>,
}

impl Sent {
    /// Sends a report; says whether it was kept.
    fn send(&mut self, client: &mut common::Client, report: String) -> bool {
        let answer = client.post(&report);
        self.note(answer, report)
    }

    /// Sends so many reports that are kept, and those that are not.
    fn send_until_kept(&mut self, server: &Server, phase: &str, count: usize) {
        let (mut connection, mut n) = (server.connect(), 0..);
        for _ in 0..count {
            let kept = || self.send(&mut connection, report(phase, 0, n.next().unwrap())).then_some(());
            wait_until(&format!("a report is kept {phase} the fault"), kept);
        }
    }

    fn note(&mut self, answer: Answer, report: String) -> bool {
        if answer.status == 200 {
            self.kept.push(report);
            return true;
        }
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
        let is_full = answer.is_full();
        answer.assert_problem(503, if is_full { "buffer-full" } else { "not-kept" });
        if is_full { &mut self.refused } else { &mut self.not_kept }.push(report);
        false
    }

    fn add(&mut self, other: Self) {
        self.kept.extend(other.kept);
        self.refused.extend(other.refused);
        self.not_kept.extend(other.not_kept);
    }

    fn check(&self, stored: &[String]) {
        let unique: HashSet<_> = stored.iter().collect();
        assert_eq!(unique.len(), stored.len(), "twice");
        let lost: Vec<_> = self.kept.iter().filter(|report| !unique.contains(report)).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
        let refused: Vec<_> = self.refused.iter().filter(|report| unique.contains(report)).collect();
        assert!(refused.is_empty(), "refused, and kept: {refused:?}");
    }
}

/// What a fault may do to those who send reports meanwhile.
#[derive(Clone, Copy, PartialEq)]
enum Clients {
    MayBeRefused,
    NoticeNothing,
}

/// A server under a fault, and all that it was sent before and since.
struct Faulty {
    server: Server,
    faults: Faults,
    sent: Sent,
}

fn report(phase: &str, client: usize, n: usize) -> String {
    format!("{{\"phase\":\"{phase}\",\"client\":{client},\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(400))
}

impl Faulty {
    fn start(data_dir: &Path, ack: &str, thread: Option<&str>, fault: &str) -> Self {
        let room = if thread.is_some() { &AMPLE[..] } else { &[] };
        let server = Server::start_in(data_dir, &[&SMALL[..], room, &[("ACK", ack)]].concat());
        let mut sent = Sent::default();
        sent.send_until_kept(&server, "before", 10);

        let faults = Faults::begin(&server, thread, &[fault]);
        sent.add(from_many(4, |client| {
            let (mut connection, mut sent) = (server.connect(), Sent::default());
            for n in 0..40 {
                sent.send(&mut connection, report("during", client, n));
                if sent.refused.len() == 2 {
                    break; // each takes a second
                }
            }
            sent
        }));
        Self { server, faults, sent }
    }

    /// The fault ends, service comes back, and a stop finds all that was kept.
    fn comes_back(self, fault: &str, clients: Clients) {
        let Self { server, faults, mut sent } = self;
        // Now there is only the work that is tried again and again. What it asks of the system makes strace busy.
        let cpu_time = || cpu_time(server.id()) + cpu_time(faults.strace.id());
        // A spin would never let it be quiet for a while.
        wait_until(&format!("the server waits between two tries: {fault}"), || {
            let (before, started) = (cpu_time(), Instant::now());
            thread::sleep(Duration::from_millis(500)); // what is measured, not a wait
            (cpu_time() - before < started.elapsed() * 15 / 100).then_some(())
        });
        if clients == Clients::NoticeNothing {
            // But that it may take a while. All that was made before is used up by now.
            sent.send_until_kept(&server, "still", 10);
            assert_eq!(sent.not_kept.len(), 0, "{fault}");
        }
        let data_dir = server.data_dir.to_str().unwrap();
        // Where a call is traced in two parts, the second one does not say what it was about.
        let is_ours = |call: &&str| call.contains(data_dir) || call.contains(" resumed>");
        let traced = faults.end();
        let mut injected = traced.lines().filter(|call| call.contains("(INJECTED)")).filter(is_ours);
        assert!(injected.next().is_some(), "{fault}: it has not happened:\n{traced}");
        sent.send_until_kept(&server, "after", 10);
        sent.check(&server.stop());
    }

    /// The server is killed while there is the fault, and a recovery without it finds all that was kept.
    fn dies(mut self) {
        self.server.signal(Signal::KILL);
        self.server.wait();
        drop(self.faults);
        let recovered = recover(&self.server.data_dir).output().unwrap();
        assert!(recovered.status.success(), "{recovered:?}");
        self.sent.check(&self.server.stored());
        assert_nothing_is_left(&self.server.data_dir);
    }
}

/// What several clients send at the same time.
fn from_many(clients: usize, send: impl Fn(usize) -> Sent + Sync) -> Sent {
    let mut sent = Sent::default();
    thread::scope(|scope| {
        let send = &send;
        let clients: Vec<_> = (0..clients).map(|client| scope.spawn(move || send(client))).collect();
        clients.into_iter().for_each(|client| sent.add(client.join().unwrap()));
    });
    sent
}

/// Each fault in all threads, or in the one of this name, with each way to acknowledge, all at the same time.
fn are_survived(thread: Option<&str>, faults: &[&str], clients: Clients) {
    thread::scope(|scope| {
        for fault in faults {
            for ack in ["journal", "disk"] {
                let start = move |dir: &Path| Faulty::start(dir, ack, thread, fault);
                scope.spawn(move || start(tempfile::tempdir().unwrap().path()).comes_back(fault, clients));
                scope.spawn(move || start(tempfile::tempdir().unwrap().path()).dies());
            }
        }
    });
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_journal_that_can_not_be_written() {
    let faults = ["pwritev:error=ENOSPC", "pwritev:error=EIO:when=1", "pwritev:error=EIO:when=2+3"];
    are_survived(None, &faults, Clients::MayBeRefused);
    are_survived(None, &["pwritev:error=EINTR:when=1..3"], Clients::NoticeNothing);
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_disk_that_can_not_sync() {
    let faults = ["error=EIO:when=1", "error=EIO", "error=ENOSPC", "error=EIO:when=2+2", "error=ENOSPC:when=1..4"];
    let faults = faults.map(|fault| format!("fsync,fdatasync:{fault}"));
    are_survived(None, &faults.each_ref().map(String::as_str), Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_file_that_can_not_be_linked_to_its_name() {
    let faults = ["linkat:error=ENOSPC", "linkat:error=EIO:when=1", "linkat:error=EIO:when=2+2"];
    are_survived(None, &faults, Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_file_that_can_not_be_opened() {
    let faults = ["openat:error=ENOSPC", "openat:error=EMFILE", "openat:error=EIO:when=1", "openat:error=EIO:when=2+3"];
    are_survived(None, &faults, Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_journal_that_can_not_be_preallocated() {
    let faults = ["fallocate:error=ENOSPC", "fallocate:error=EIO:when=1..2", "fallocate:error=EINTR:when=1..2"];
    are_survived(None, &faults, Clients::MayBeRefused);
    are_survived(None, &["fallocate:error=EOPNOTSUPP"], Clients::NoticeNothing);
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_file_that_can_not_be_removed() {
    let faults = ["unlink:error=EIO", "unlink:error=EIO:when=1", "unlink:error=EROFS:when=2+2"];
    are_survived(None, &faults, Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_file_that_can_not_be_written() {
    // Not what others write to sockets, or to wake threads. To the log it writes as well.
    let faults = ["write:error=ENOSPC", "write:error=EIO:when=1..4", "write:error=EIO:when=2..3"];
    are_survived(Some("flush"), &faults, Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn what_is_rarely_refused() {
    let faults =
        ["flock:error=ENOLCK", "mkdir:error=EIO", "statx:error=EIO", "utimensat:error=EPERM", "statfs:error=EIO"];
    are_survived(None, &faults, Clients::MayBeRefused);
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_thread_that_can_not_be_started_leaves_nobody_without_an_answer() {
    // The first sync of all: it may want a thread that is not there yet, or is not there any more.
    let server = Server::start(&[("ACK", "disk")]);
    let faults = Faults::begin(&server, None, &["clone3,clone:error=EAGAIN"]);
    let mut sent = Sent::default();
    sent.send(&mut server.connect(), report("during", 0, 0));
    sent.send(&mut server.connect(), report("during", 0, 1));
    faults.end();
    sent.send_until_kept(&server, "after", 1);
    sent.check(&server.stop());
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_stop_needs_no_thread_that_is_not_there() {
    for ack in ["memory", "journal", "disk"] {
        let server = Server::start(&[("ACK", ack)]);
        let mut sent = Sent::default();
        assert!(sent.send(&mut server.connect(), report("before", 0, 0)));
        let faults = Faults::begin(&server, None, &["clone3,clone:error=EAGAIN"]);
        sent.check(&server.stop());
        drop(faults);
    }
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_recovery_needs_no_thread_that_is_not_there() {
    let mut server = Server::start(&[("ZSTD_THREADS", "4")]);
    server.post("{}").assert_ok();
    let faults = Faults::begin(&server, None, &["clone3,clone:error=EAGAIN"]);
    for n in 1..4 {
        let journal = format!("journal/reports-20261122T150512.12345678{n}Z-5f3a9c01.jsonl");
        fs::write(server.data_dir.join(journal), "{}\n").unwrap();
    }
    wait_until("all are recovered", || (server.count_in_log("recovered") == 3).then_some(()));
    assert!(faults.end().contains("(INJECTED)"));
    assert_eq!(server.stop().len(), 4);
}

/// All that the flush thread does on disk, and all that a recovery does.
const CALLS: [&str; 10] =
    ["openat", "flock", "write", "utimensat", "fsync", "linkat", "unlink", "close", "mkdir", "getdents64"];

#[test]
#[ignore = "needs strace: make faults"]
fn a_server_killed_at_any_system_call_of_a_flush_leaves_each_report_once() {
    // Also of one that is tried a second time.
    for first in ["", "fsync:error=ENOSPC:when=1", "linkat:error=ENOSPC:when=1"] {
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
fn a_recovery_that_fails_or_is_killed_at_any_system_call_is_made_good_by_the_next() {
    const JOURNAL: &str = "reports-20261122T150512.123456789Z-5f3a9c01.jsonl";
    const TORN: &str = "{\"n\":\u{1}}\n{\"n\":";
    for call in CALLS {
        for fault in ["error=EIO:signal=KILL", "error=EIO", "error=ENOSPC"] {
            for nth in 1.. {
                let dir = tempfile::tempdir().unwrap();
                fs::create_dir(dir.path().join("journal")).unwrap();
                let journal = format!("{{\"n\":1}}\n{{\"n\":2}}\n{TORN}\0\0\0\0");
                fs::write(dir.path().join("journal").join(JOURNAL), journal).unwrap();

                let trace = tempfile::NamedTempFile::new().unwrap();
                let fault = format!("{call}:{fault}:when={nth}");
                let mut command = strace(trace.path(), &[&fault]);
                let program = recover(dir.path());
                let first = command.arg(program.get_program()).args(program.get_args()).output().unwrap();
                let killed = first.status.code().is_none();
                let happened = killed || fs::read_to_string(trace.path()).unwrap().contains("(INJECTED)");

                let second = recover(dir.path()).output().unwrap();
                assert!(second.status.success(), "{fault}: {second:?}");
                assert_eq!(stored(dir.path()), ["{\"n\":1}", "{\"n\":2}"], "{fault}");
                assert_eq!(fs::read_to_string(dir.path().join("quarantine").join(JOURNAL)).unwrap(), TORN, "{fault}");
                assert_nothing_is_left(dir.path());
                if !happened {
                    break;
                }
            }
        }
    }
}

#[test]
#[ignore = "needs strace: make faults"]
fn reports_are_taken_while_those_of_before_are_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal/reports-20261122T150512.123456789Z-5f3a9c01.jsonl");
    fs::create_dir(journal.parent().unwrap()).unwrap();
    fs::write(&journal, "{\"n\":1}\n").unwrap();
    let trace = tempfile::NamedTempFile::new().unwrap();
    // Only who makes a report file sets its time. Traced from beside it, the server is the process that was started.
    let mut command = strace(trace.path(), &["utimensat:delay_enter=60s"]);
    command.args(["-f", "-D"]).arg(common::command(dir.path()).get_program());
    let mut server = Server::spawn_from(command, dir.path(), &[], None);
    server.post("{\"n\":2}").assert_ok();
    let is_making = |name: OsString| name.as_encoded_bytes().starts_with(b".reports-");
    wait_until("the recovery makes a file", || {
        fs::read_dir(dir.path()).unwrap().any(|file| is_making(file.unwrap().file_name())).then_some(())
    });
    server.post("{\"n\":3}").assert_ok();
    assert!(stored(dir.path()).is_empty());
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).unwrap();
    server.signal(Signal::KILL);
    // It may keep a thread whose call it delays, dead as that is.
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

/// No journal is, and no file in the making.
fn assert_nothing_is_left(dir: &Path) {
    let files = |dir: &Path| fs::read_dir(dir).into_iter().flatten().map(|file| file.unwrap().path());
    let mut made = files(dir).chain(files(&dir.join("quarantine")));
    let hidden = made.find(|path| path.file_name().unwrap().as_encoded_bytes()[0] == b'.');
    assert_eq!((hidden, files(&dir.join("journal")).next()), (None, None));
}

#[test]
#[ignore = "needs strace: make faults"]
fn a_sync_that_works_after_one_that_failed_acknowledges_nothing() {
    let settings = [("ACK", "disk"), ("WORKERS", "2"), ("BATCH_BYTES", "64KiB"), ("MAX_BODY_BYTES", "60KiB")];
    let server = Server::start(&settings);
    // Every other sync fails, so that all the time one works after one that has failed. Writes are only to be seen.
    let faults = Faults::begin(&server, None, &["fdatasync:error=EIO:when=1+2", "pwritev:delay_exit=1"]);
    let sent = from_many(32, |client| {
        let (mut connection, mut sent) = (server.connect(), Sent::default());
        for n in 0..100 {
            sent.send(&mut connection, format!("{{\"id\":\"{client}-{n}\"}}"));
        }
        sent
    });
    let synced = synced(&faults.end());
    let early: Vec<_> = sent.kept.iter().filter(|report| !synced.contains(*report)).take(5).collect();
    assert!(early.is_empty(), "acknowledged, and not on disk: {early:?}");
    assert!(!sent.kept.is_empty() && !sent.not_kept.is_empty());
    sent.check(&server.stop());
}

/// The reports that a journal has brought to the disk before its first sync that failed.
fn synced(traced: &str) -> HashSet<String> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    // By the path of the journal: what is written, unless a sync has failed.
    let mut written: HashMap<String, Option<Vec<String>>> = HashMap::new();
    let mut synced = HashSet::new();
    for line in traced.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, start);
            continue;
        }
        let start = if call.trim_start().starts_with("<... ") { begun[thread] } else { call };
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
fn a_leader_that_comes_when_its_batch_is_flushed_leaves_no_journal() {
    let settings = [("ACK", "disk"), ("FLUSH_INTERVAL", "1ms"), ("WORKERS", "1")];
    let server = Server::start(&settings);
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    // A leader lets the others go first, and each of them takes longer than a flush. The rest is only to be seen.
    let faults = Faults::begin(&server, None, &["recvfrom:delay_enter=50ms", "linkat,unlink:delay_exit=1"]);
    let mut sent = Sent::default();
    for n in 0..10 {
        let report = |client: usize| format!("{{\"id\":\"{client}-{n}\"}}");
        clients.iter_mut().enumerate().for_each(|(n, client)| client.send(common::request(report(n).as_bytes())));
        clients.iter_mut().enumerate().for_each(|(n, client)| assert!(sent.note(client.answer(), report(n))));
    }
    let flush = thread_id(server.id(), "flush").unwrap().to_string();
    let journals = || fs::read_dir(server.data_dir.join("journal")).unwrap().map(|file| file.unwrap().file_name());
    let is_named = |name: OsString| name.as_encoded_bytes()[0] != b'.';
    wait_until("all is flushed", || (!journals().any(is_named)).then_some(()));
    let traced = faults.end();
    drop(clients);

    let calls = |call: &'static str| traced.lines().filter(move |line| line.contains(call));
    let is_journal = |path: &&str| path.contains("/journal/reports-");
    let linked = || calls("linkat(").map(|line| line.split('"').nth(3).unwrap());
    let discards = calls("unlink(")
        .filter(|line| line.starts_with(&format!("{flush} ")))
        .map(|line| line.split('"').nth(1).unwrap());
    let discarded: HashSet<_> = discards.filter(is_journal).collect();
    let left: Vec<_> = linked().filter(is_journal).filter(|journal| !discarded.contains(journal)).collect();
    assert!(left.is_empty(), "not for the flush to discard: {left:?}");
    let (named, published): (Vec<_>, Vec<_>) = linked().partition(is_journal);
    assert!(published.len() > named.len(), "no leader was late");
    sent.check(&server.stop());
}
