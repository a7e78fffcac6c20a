//! A log that nobody reads blocks nothing.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Stdio};
use std::thread;

use common::{Client, server_command, stored, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// More log lines than the pipe and the server's queue can hold.
const REQUESTS: usize = 12_000;

struct Server {
    child: Child,
    /// The log after the line "listening".
    log: Option<BufReader<ChildStderr>>,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Server {
    /// A server that has logged so many lines that further lines are lost. Nobody has read its log.
    fn with_full_log() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = server_command(dir.path(), &[("DEBUG", "on"), ("FLUSH_INTERVAL", "1h")]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            log.read_line(&mut line).unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(address) = line["fields"]["address"].as_str() {
                break address.parse().unwrap();
            }
        };
        let server = Self { child, log: Some(log), address, dir };
        let mut client = server.connect();
        for _ in 0..REQUESTS {
            // Each refusal is a log line.
            client.post("[]").assert_problem(400, "empty");
        }
        server
    }

    fn connect(&self) -> Client {
        Client::try_connect(self.address).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

#[test]
fn requests_flush_and_shutdown_continue_while_nobody_reads_the_log() {
    let mut server = Server::with_full_log();
    let mut client = server.connect();
    client.post("{\"n\":1}").assert_ok();
    assert_eq!(client.ask("GET /livez HTTP/1.1\r\nhost: test\r\n\r\n", b"").status, 200);
    server.signal(Signal::TERM);
    let status = wait_until("the server stops", || server.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert_eq!(stored(server.dir.path()), ["{\"n\":1}"]);
}

#[test]
fn lost_lines_are_counted_in_the_log() {
    let mut server = Server::with_full_log();
    let mut log = server.log.take().unwrap();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    });
    // The queue has space as soon as the log is read. Then the next line follows the count of lost lines.
    server.connect().post("{}").assert_ok();
    server.signal(Signal::TERM);
    wait_until("the server stops", || server.child.try_wait().unwrap());
    let log = reader.join().unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let is_count = |line: &serde_json::Value| {
        line["fields"]["message"].as_str().is_some_and(|message| message.starts_with("log lines were lost"))
    };
    let lost: u64 = lines.filter(is_count).map(|line| line["fields"]["lines"].as_u64().unwrap()).sum();
    let refused = log.matches("refused a request").count() as u64;
    assert!(
        lost > 0 && refused < REQUESTS as u64 && lost + refused >= REQUESTS as u64,
        "{lost} lost, {refused} logged"
    );
}
