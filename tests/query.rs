//! Reports are read back from a data directory while a server writes to it.

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{Server, command, report_files, wait_until};
use rustix::process::Signal;

/// Batches are small and flushes are frequent, so that batches move all the time.
const MOVING: &[(&str, &str)] = &[
    ("MAX_BODY_BYTES", "1KiB"),
    ("BATCH_BYTES", "4KiB"),
    ("BUFFER_BYTES", "64KiB"),
    ("FLUSH_INTERVAL", "20ms"),
    ("ZSTD_LEVEL", "1"),
];

fn run(dir: &Path, arguments: &[&str]) -> Output {
    command(dir).args(arguments).output().unwrap()
}

/// The lines that a command prints, which must succeed.
fn lines(dir: &Path, arguments: &[&str]) -> Vec<String> {
    let output = run(dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn error(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(dir, arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn dir_of(server: &Server) -> &str {
    server.data_dir.to_str().unwrap()
}

/// Sends reports from four clients until `work` ends. Passes the ids of the acknowledged reports to `work`.
fn under_load<T>(server: &Server, work: impl FnOnce(&Mutex<Vec<String>>) -> T) -> (T, Vec<String>) {
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (acknowledged, has_ended) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let result = thread::scope(|scope| {
        // Also if `work` panics.
        let _end = End(&has_ended);
        for writer in 0..4 {
            let (acknowledged, has_ended) = (&acknowledged, &has_ended);
            let mut client = server.connect();
            scope.spawn(move || {
                for n in 0.. {
                    if has_ended.load(Ordering::Relaxed) {
                        break;
                    }
                    let id = format!("{writer}-{n}");
                    client
                        .post_until_capacity(format!("{{\"id\":\"{id}\",\"pad\":\"{}\"}}", "x".repeat(n % 400)))
                        .assert_ok();
                    acknowledged.lock().unwrap().push(id);
                }
            });
        }
        work(&acknowledged)
    });
    (result, acknowledged.into_inner().unwrap())
}

#[test]
fn each_acknowledged_report_is_read_at_once_and_once_while_batches_move() {
    let server = Server::start(MOVING);
    let dir = server.data_dir.clone();
    let (moved, _) = under_load(&server, |acknowledged| {
        let mut moved = 0;
        while moved < 5 {
            let before = acknowledged.lock().unwrap().clone();
            let files = report_files(&dir).len();
            let ids = lines(&dir, &["query", "--dir", dir.to_str().unwrap(), ".id"]);
            moved += usize::from(report_files(&dir).len() > files + 2 && !before.is_empty());
            let distinct: HashSet<&str> = ids.iter().map(|id| id.trim_matches('"')).collect();
            assert_eq!(distinct.len(), ids.len(), "a report was read twice");
            let missing: Vec<_> = before.iter().filter(|id| !distinct.contains(id.as_str())).take(5).collect();
            assert!(missing.is_empty(), "acknowledged before the query, but not read: {missing:?}");
        }
        moved
    });
    assert_eq!(moved, 5);
}

struct Tail {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Tail {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        let mut tail = command(dir);
        tail.args(["tail", "-f", "--dir", dir.to_str().unwrap()]).args(arguments).stdout(Stdio::piped());
        let mut child = tail.stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn tail_prints_each_new_report_once() {
    for ack in ["memory", "journal"] {
        let server = Server::start(&[MOVING, &[("ACK", ack)]].concat());
        server.post("{\"id\":\"before\"}").assert_ok();
        wait_until("the first report is in a file", || (report_files(&server.data_dir).len() == 1).then_some(()));
        let mut tail = Tail::start(&server.data_dir, &["-n", "1", ".id"]);
        assert_eq!(tail.line(), "\"before\"", "the last report, and then it follows");
        let ((), acknowledged) = under_load(&server, |acknowledged| {
            wait_until("enough reports", || (acknowledged.lock().unwrap().len() > 2000).then_some(()));
        });
        let mut printed: Vec<String> = (0..acknowledged.len()).map(|_| tail.line()).collect();
        server.post("{\"id\":\"last\"}").assert_ok();
        assert_eq!(tail.line(), "\"last\"", "nothing is printed twice");
        let mut expected: Vec<String> = acknowledged.iter().map(|id| format!("\"{id}\"")).collect();
        printed.sort();
        expected.sort();
        assert_eq!(printed, expected, "{ack}");
    }
}

#[test]
fn a_tail_that_starts_under_load_prints_each_report_once() {
    let server = Server::start(MOVING);
    let ((before, mut printed, last), acknowledged) = under_load(&server, |acknowledged| {
        let mut printed = Vec::new();
        let mut tails = 0;
        // Each tail starts while batches move.
        let mut tail = Tail::start(&server.data_dir, &["-n", "50", ".id"]);
        let before = acknowledged.lock().unwrap().len();
        while tails < 20 {
            printed = (0..300).map(|_| tail.line()).collect::<Vec<String>>();
            let distinct: HashSet<&String> = printed.iter().collect();
            assert_eq!(distinct.len(), printed.len(), "printed twice");
            tails += 1;
            tail = Tail::start(&server.data_dir, &["-n", "50", ".id"]);
        }
        (before, printed, tails)
    });
    printed.sort();
    assert!(last == 20 && printed.len() == 300 && acknowledged.len() >= before);
}

#[test]
fn a_slow_reader_of_events_is_told_how_many_reports_it_has_missed() {
    let server = Server::start(&[]);
    server.post("{\"n\":\"first\"}").assert_ok();
    let mut tail = Tail::start(&server.data_dir, &["--format", "sse", "-n", "1"]);
    assert_eq!(tail.line(), "data: {\"n\":\"first\"}");
    // More than a pipe and the buffers hold. Nobody reads it, until the tail has been blocked for a while.
    let mut client = server.connect();
    for n in 0..2000 {
        client.post(format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(1000))).assert_ok();
    }
    let is_blocked = || {
        let stack = fs::read_to_string(format!("/proc/{}/wchan", tail.child.id())).unwrap_or_default();
        let state = fs::read_to_string(format!("/proc/{}/stat", tail.child.id())).unwrap();
        stack.contains("pipe") || (stack.len() <= 1 && state.contains(") S "))
    };
    wait_until("the tail is blocked", || is_blocked().then_some(()));
    thread::sleep(std::time::Duration::from_millis(500)); // longer than the limit for a slow reader
    client.post("{\"n\":\"late\"}").assert_ok();
    let (mut received, mut skipped) = (0, 0);
    let is_complete = |received: usize, skipped: u64| received as u64 + skipped >= 2001;
    while !is_complete(received, skipped) {
        match tail.line().as_str() {
            "" => {}
            "event: skipped" => {
                let data = tail.line();
                let data: serde_json::Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
                skipped += data["reports"].as_u64().unwrap();
            }
            line if line.starts_with("data: {") => received += 1,
            line => assert!(line.starts_with(':'), "{line}"),
        }
    }
    assert!(skipped > 0 && received > 0 && received as u64 + skipped == 2001, "{received} {skipped}");
}

#[test]
fn a_silent_tail_sends_comments() {
    let server = Server::start(&[]);
    let mut tail = Tail::start(&server.data_dir, &["--format", "sse"]);
    assert_eq!(tail.line(), ": alive");
}

#[test]
fn a_filter_that_does_not_end_ends_the_tail() {
    let server = Server::start(&[]);
    let mut tail = Tail::start(&server.data_dir, &["last(repeat(1))"]);
    server.post("{}").assert_ok();
    let status = wait_until("the tail ends", || tail.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_tail_that_nobody_reads_ends() {
    let server = Server::start(&[]);
    let mut tail = Tail::start(&server.data_dir, &[]);
    server.post("{}").assert_ok();
    assert_eq!(tail.line(), "{}");
    let Tail { child, lines } = &mut tail;
    // Replaces the reader, which closes the pipe.
    let (_, other) = std::io::pipe().unwrap();
    drop(other);
    let mut nothing = command(&server.data_dir).arg("--version").stdout(Stdio::piped()).spawn().unwrap();
    *lines = BufReader::new(nothing.stdout.take().unwrap());
    nothing.wait().unwrap();
    let status = wait_until("the tail ends", || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn the_output_may_be_closed_early() {
    let server = Server::start(&[]);
    for n in 0..200 {
        server.connect().post(format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(10_000))).assert_ok();
    }
    for command_line in
        [&["query"][..], &["query", ".n"], &["query", "repeat(.)"], &["cat"], &["query", "--format", "json"]]
    {
        let mut child = command(&server.data_dir)
            .args(command_line)
            .args(["--dir", dir_of(&server)])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 1];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{command_line:?}: {output:?}");
    }
}

#[test]
fn invalid_parameters_are_named_and_the_exit_code_is_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for (arguments, expected) in [
        (&["query", "--dir", path, ".a =="][..], "expected term at position 6, the end"),
        (&["query", "--dir", path, "env"], "unknown filter env"),
        (&["query", "--dir", path, "--since", "soon"], "not a time"),
        (&["query", "--dir", path, "--since", "1h", "--until", "2h"], "is later than --until"),
        (&["query", "--dir", path, "--time", "timestamp"], "a path begins with"),
        (&["query", "--dir", path, "--limit=-1"], "invalid"),
        (&["query", "--dir", "/no/such/directory"], "there is no directory /no/such/directory"),
        (&["tail", "--dir", path, ".", "."], "unexpected argument"),
    ] {
        let (code, message) = error(dir.path(), arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {message}");
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
    assert_eq!(lines(dir.path(), &["query", "--dir", path]), [""; 0]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "reading creates nothing");
}

#[test]
fn corrupt_files_are_named_and_the_exit_code_is_3() {
    let server = Server::start(&[("FLUSH_INTERVAL", "10ms")]);
    for n in 0..3 {
        server.post(format!("{{\"n\":{n}}}")).assert_ok();
        wait_until("the report is in a file", || (report_files(&server.data_dir).len() == n + 1).then_some(()));
    }
    let corrupt = &report_files(&server.data_dir)[1];
    fs::write(corrupt, "not zstd").unwrap();
    // Nothing that is not a report file is opened.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        server.data_dir.join("reports-20261122T150512.000000789Z-00005f3a.jsonl.zst"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let output = run(&server.data_dir, &["query", "--dir", dir_of(&server), ".n"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "0\n2\n");
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains(corrupt.file_name().unwrap().to_str().unwrap()), "{message}");
    let listed = lines(&server.data_dir, &["ls", "--dir", dir_of(&server), "--format", "ndjson"]);
    assert!(listed.len() >= 3 && listed[1].contains(corrupt.file_name().unwrap().to_str().unwrap()), "{listed:?}");
    let file = report_files(&server.data_dir).last().unwrap().to_str().unwrap().to_owned();
    assert_eq!(lines(&server.data_dir, &["cat", &file]), ["{\"n\":2}"]);
}

#[test]
fn a_query_of_a_dead_server_reads_its_journals_up_to_the_last_complete_line() {
    let mut server = Server::start(&[("FLUSH_INTERVAL", "1h")]);
    for n in 0..10 {
        server.post(format!("{{\"n\":{n}}}")).assert_ok();
    }
    server.signal(Signal::KILL);
    server.wait();
    let journals: Vec<_> =
        fs::read_dir(server.data_dir.join("journal")).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(journals.len(), 1);
    let content = fs::read(&journals[0]).unwrap();
    let end = content.iter().position(|byte| *byte == 0).unwrap();
    let torn = [&content[..end], b"{\"n\":1", &content[end + 6..]].concat();
    fs::write(&journals[0], torn).unwrap();
    let numbers: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    assert_eq!(lines(&server.data_dir, &["query", "--dir", dir_of(&server), ".n"]), numbers);
    let corrupt = [&content[..8], b"\x01", &content[9..]].concat();
    fs::write(&journals[0], corrupt).unwrap();
    let (code, message) = error(&server.data_dir, &["query", "--dir", dir_of(&server)]);
    assert_eq!(code, Some(3), "{message}");
    assert!(message.contains("8 corrupt bytes"), "{message}");
}

#[test]
fn completions_and_manual_pages_know_all_commands() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = lines(dir.path(), &["completions", shell]).join("\n");
        assert!(script.contains("since") && script.contains("prune"), "{shell}");
    }
    lines(dir.path(), &["man", dir.path().to_str().unwrap()]);
    let page = fs::read_to_string(dir.path().join("netwatch-server-query.1")).unwrap();
    assert!(page.contains("since") && !page.contains("child"), "{page}");
}

#[test]
fn a_child_process_limits_itself() {
    let server = Server::start(&[]);
    server.post("{}").assert_ok();
    let tail = Tail::start(&server.data_dir, &["--child"]);
    let pid = tail.child.id();
    let limits = wait_until("the limits are set", || {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max address space")).unwrap().to_owned();
        (!line.contains("unlimited")).then_some(line)
    });
    let bytes: u64 = limits.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(bytes < 2 << 30, "{limits}");
    assert_eq!(lines(&server.data_dir, &["query", "--child=5", "--dir", dir_of(&server)]), ["{}"]);
    let score = || fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim() == "1000";
    wait_until("the kernel prefers to kill it", || score().then_some(()));
    // Endless programs end, at the latest with their CPU time.
    let mut endless = command(&server.data_dir);
    let mut endless = endless
        .args(["query", "--child=1", "--dir", dir_of(&server), "last(repeat(1))"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = wait_until("the CPU time is used up", || endless.try_wait().unwrap());
    assert!(!status.success());
    // The memory is used up, long before the CPU time. An error of a filter would be exit code 3.
    for filter in ["[range(1e12)] | length", "def f: [f]; f", "reduce range(60) as $n (\"x\"; . + .) | length"] {
        let output = run(&server.data_dir, &["query", "--child=600", "--dir", dir_of(&server), filter]);
        assert_eq!(output.status.signal(), Some(Signal::ABORT.as_raw()), "{filter}: {output:?}");
    }
}

/// The code blocks of a page whose language is `sh`, each with the `text` block that follows it.
fn examples(page: &str) -> Vec<(String, String)> {
    let mut blocks = page.split("```").skip(1).step_by(2).peekable();
    let mut examples = Vec::new();
    while let Some(block) = blocks.next() {
        if let Some(commands) = block.strip_prefix("sh\n")
            && let Some(output) = blocks.peek().and_then(|next| next.strip_prefix("text\n"))
        {
            examples.push((commands.to_owned(), output.to_owned()));
        }
    }
    examples
}

#[test]
fn the_examples_of_the_documentation_print_what_the_page_says() {
    let docs = |page: &str| fs::read_to_string(format!("{}/docs/{page}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let reading = docs("reading.md");
    let (_, example_data) = reading.split_once("<<'END'\n").unwrap();
    let (example_data, rest) = example_data.split_once("END\n").unwrap();
    let (_, fifth) = rest.split_once("curl -d '").unwrap();
    let (fifth, _) = fifth.split_once('\'').unwrap();
    let server = Server::start(&[("FLUSH_INTERVAL", "1h")]);
    server.post(example_data).assert_accepted(4);
    server.post(fifth).assert_accepted(1);

    let examples = examples(&docs("query.md"));
    assert!(examples.len() >= 5, "{examples:?}");
    for (commands, expected) in examples {
        let program = commands.replace("netwatch-server", env!("CARGO_BIN_EXE_netwatch-server"));
        let mut shell = std::process::Command::new("sh");
        let output =
            shell.args(["-c", &format!("{{ {program} }} 2>&1")]).env("DATA_DIR", &server.data_dir).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{commands}");
    }
}
