//! A disk that hangs: writes neither succeed nor fail until the disk works again.
//!
//! The data directory is on an ext4 file system of its own, which `fsfreeze` stalls. Requires root.

mod common;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use common::file_system::{FileSystem, Frozen, Kind};
use common::{Answer, Client, Server, request, wait_until};
use rustix::process::Signal;

/// The server's `COMMIT_TIMEOUT`.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum time from a request to its refusal.
const REFUSAL: Duration = Duration::from_secs(3);

/// Maximum time of an answer of `/livez`.
const ALIVE: Duration = Duration::from_secs(1);

/// Maximum time until `/readyz` is 503.
const NOT_READY: Duration = Duration::from_secs(2);

/// Maximum time until a server is back in service after a stall. A debug build may share the machine with compilers.
const BACK: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3 } else { 1 });

/// Time that a client waits before it gives up. Only a failing test waits this long.
const LIMIT: Duration = Duration::from_secs(8);

/// A new file system, and a server on it. The file system must be dropped last.
fn start(ack: &str, settings: &[(&str, &str)]) -> (FileSystem, Server) {
    let file_system = FileSystem::mount(Kind::Ext4, 128);
    let mut all = vec![
        ("ACK", ack),
        ("COMMIT_TIMEOUT", "1s"),
        ("WORKERS", "2"),
        ("FLUSH_INTERVAL", "1h"),
        ("BATCH_BYTES", "1MiB"),
        ("MAX_BODY_BYTES", "64KiB"),
        ("INFLIGHT_BYTES", "1MiB"),
        ("BUFFER_BYTES", "4MiB"),
        ("MIN_FREE_BYTES", "0"),
        ("SHUTDOWN_TIMEOUT", "2s"),
    ];
    all.extend(settings);
    let server = Server::start_in(&file_system.path.join("reports"), &all);
    // The active batch has its journal now, so the next report needs nothing but a write.
    server.post("{\"id\":\"first\"}").assert_ok();
    (file_system, server)
}

fn connect(server: &Server, limit: Duration) -> Client {
    let client = server.connect();
    client.writer().set_read_timeout(Some(limit)).unwrap();
    client
}

fn get(server: &Server, path: &str) -> io::Result<Answer> {
    let mut client = connect(server, LIMIT);
    client.try_send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n"))?;
    client.try_answer()
}

fn post(server: &Server, id: &str) -> io::Result<Answer> {
    let mut client = connect(server, LIMIT);
    client.try_send(request(report(id).as_bytes()))?;
    client.try_answer()
}

fn report(id: &str) -> String {
    format!("{{\"id\":\"{id}\"}}")
}

/// Posts a report that must be refused with `not-durable`. Returns the time until the answer, or what is wrong.
fn refusal(server: &Server, id: &str) -> Result<Duration, String> {
    let started = Instant::now();
    let answer = post(server, id).map_err(|error| format!("{id}: no answer within {LIMIT:?}: {error}"))?;
    let time = started.elapsed();
    match answer.status == 503 && answer.body.contains(":not-durable") {
        false => Err(format!("{id}: {} {}", answer.status, answer.body)),
        true if time >= REFUSAL => Err(format!("{id}: refused after {time:?}, too late")),
        true if time < COMMIT_TIMEOUT / 2 => Err(format!("{id}: refused after {time:?}, too early")),
        true => Ok(time),
    }
}

/// Posts these reports at the same time, checks that all are refused, and returns the longest time.
fn assert_refused(server: &Server, ids: &[String]) -> Duration {
    let times: Result<Vec<_>, _> = thread::scope(|scope| {
        let posts: Vec<_> = ids.iter().map(|id| scope.spawn(move || refusal(server, id))).collect();
        posts.into_iter().map(|post| post.join().unwrap()).collect()
    });
    times.unwrap_or_else(|wrong| panic!("{wrong}")).into_iter().max().unwrap()
}

/// Asks `/livez` until `until`, and returns the longest time of an answer.
fn watch_livez(server: &Server, until: Instant) -> Duration {
    let mut longest = Duration::ZERO;
    while Instant::now() < until {
        let asked = Instant::now();
        let answer = get(server, "/livez").unwrap_or_else(|error| panic!("/livez: no answer: {error}"));
        assert_eq!(answer.status, 200);
        longest = longest.max(asked.elapsed());
        thread::sleep(Duration::from_millis(20)); // the pace of the health check
    }
    longest
}

/// Thaws, and returns the times until a report is accepted and until the server is ready.
fn thaw(server: &Server, frozen: Frozen<'_>, id: &str) -> [Duration; 2] {
    frozen.thaw();
    let thawed = Instant::now();
    let mut attempt = 0;
    wait_until("a report is accepted after the stall", || {
        attempt += 1;
        let answer = post(server, &format!("{id}-{attempt}"));
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    });
    let accepted = thawed.elapsed();
    wait_until("the server is ready after the stall", || {
        get(server, "/readyz").is_ok_and(|answer| answer.status == 200).then_some(())
    });
    [accepted, thawed.elapsed()]
}

/// How often each report is stored.
fn copies(stored: Vec<String>) -> HashMap<String, usize> {
    let mut copies = HashMap::new();
    for line in stored {
        let report: serde_json::Value = serde_json::from_str(&line).unwrap();
        *copies.entry(report["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    copies
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn requests_are_refused_in_time_and_livez_answers_while_the_disk_is_stalled() {
    for ack in ["journal", "disk"] {
        let (file_system, server) = start(ack, &[]);
        let server = &server;
        let frozen = file_system.freeze();
        let stalled = Instant::now();
        thread::scope(|scope| {
            // Longer than all refusals below.
            let livez = scope.spawn(move || watch_livez(server, stalled + 3 * COMMIT_TIMEOUT + REFUSAL));
            let ready = scope.spawn(move || {
                loop {
                    let answer = get(server, "/readyz").unwrap_or_else(|error| panic!("/readyz: no answer: {error}"));
                    match answer.status {
                        503 => break (stalled.elapsed(), answer.json()["reason"].as_str().unwrap().to_owned()),
                        _ => assert!(stalled.elapsed() < LIMIT, "/readyz is not 503 after {LIMIT:?}"),
                    }
                    thread::sleep(Duration::from_millis(20)); // the pace of the health check
                }
            });
            // More requests than workers, several times: a worker that hangs would show.
            for round in 0..3 {
                let ids: Vec<_> = (0..20).map(|n| format!("stalled-{round}-{n}")).collect();
                let longest = assert_refused(server, &ids);
                println!("ACK={ack}: 20 requests during the stall were refused within {longest:?}");
            }
            let (time, reason) = ready.join().unwrap();
            println!("ACK={ack}: /readyz was 503 after {time:?}: {reason}");
            assert!(time < NOT_READY, "{time:?}");
            assert!(reason.contains("disk") || reason.contains("journal"), "{reason}");
            let longest = livez.join().unwrap();
            println!("ACK={ack}: /livez took up to {longest:?}");
            assert!(longest < ALIVE, "{longest:?}");
        });
        let [accepted, ready] = thaw(server, frozen, "thawed");
        println!("ACK={ack}: after the stall, accepted a report after {accepted:?}, ready after {ready:?}");
        assert!(accepted < BACK && ready < BACK, "{accepted:?} {ready:?}");
    }
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn with_ack_memory_reports_are_accepted_during_a_stall_until_the_buffer_is_full() {
    let (file_system, server) = start("memory", &[("BATCH_BYTES", "128KiB"), ("BUFFER_BYTES", "512KiB")]);
    let report = |n: usize| format!("{{\"id\":\"{n}\",\"pad\":\"{}\"}}", "x".repeat(8000));
    let frozen = file_system.freeze();
    let (mut accepted, mut longest) = (0, Duration::ZERO);
    let full = thread::scope(|scope| {
        let livez = scope.spawn(|| watch_livez(&server, Instant::now() + 2 * COMMIT_TIMEOUT));
        let full = loop {
            let mut client = connect(&server, LIMIT);
            client.send(request(report(accepted).as_bytes()));
            let asked = Instant::now();
            let answer = client.try_answer().unwrap_or_else(|error| panic!("no answer within {LIMIT:?}: {error}"));
            if answer.status != 200 {
                break answer;
            }
            longest = longest.max(asked.elapsed());
            accepted += 1;
            assert!(accepted < 1000, "the buffer has no limit");
        };
        assert!(livez.join().unwrap() < ALIVE);
        full
    });
    full.assert_problem(503, "buffer-full");
    println!("ACK=memory: {accepted} reports were accepted during the stall, each within {longest:?}");
    assert!(accepted > 30 && longest < ALIVE, "{accepted} {longest:?}");
    frozen.thaw();
    let copies = copies(server.stop());
    assert!((0..accepted).all(|n| copies.get(&n.to_string()) == Some(&1)), "{copies:?}");
    assert_eq!(copies.len(), accepted + 1);
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn a_report_that_is_refused_during_a_stall_is_stored_at_most_once_and_an_accepted_one_exactly_once() {
    for ack in ["journal", "disk"] {
        let (file_system, server) = start(ack, &[]);
        let frozen = file_system.freeze();
        let refused: Vec<_> = (0..20).map(|n| format!("stalled-{n}")).collect();
        assert_refused(&server, &refused);
        thaw(&server, frozen, "thawed");
        for n in 0..50 {
            server.post(report(&format!("after-{n}"))).assert_ok();
        }
        let copies = copies(server.stop());
        assert_eq!(copies["first"], 1);
        assert!((0..50).all(|n| copies.get(&format!("after-{n}")) == Some(&1)), "{copies:?}");
        assert!(copies.values().all(|copies| *copies == 1), "{copies:?}");
    }
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn clients_that_go_away_during_a_stall_free_their_connections() {
    const MAX_CONNECTIONS: usize = 8;
    for ack in ["journal", "disk"] {
        let (file_system, server) = start(ack, &[("MAX_CONNECTIONS", "8")]);
        wait_until("the first connection is closed", || get(&server, "/livez").is_ok().then_some(()));
        let frozen = file_system.freeze();
        let waiting: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|n| {
                let mut client = connect(&server, LIMIT);
                client.send(request(report(&format!("waiting-{n}")).as_bytes()));
                client
            })
            .collect();
        let mut beyond = connect(&server, Duration::from_millis(500));
        beyond.send("GET /livez HTTP/1.1\r\nhost: test\r\n\r\n");
        assert!(beyond.try_answer().is_err(), "all connections are taken");
        drop(beyond);
        for (n, client) in waiting.into_iter().enumerate() {
            if n % 2 == 0 {
                client.reset_on_drop();
            }
        }
        let gone = Instant::now();
        let mut clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect(&server, LIMIT)).collect();
        for client in &mut clients {
            client.send("GET /livez HTTP/1.1\r\nhost: test\r\n\r\n");
        }
        for client in &mut clients {
            let answer = client.try_answer().unwrap_or_else(|error| panic!("a new client is not served: {error}"));
            assert_eq!(answer.status, 200);
        }
        println!("ACK={ack}: {MAX_CONNECTIONS} new clients were served {:?} after the others had gone", gone.elapsed());
        assert!(gone.elapsed() < REFUSAL, "{:?}", gone.elapsed());
        drop(clients);
        thaw(&server, frozen, "thawed");
        assert!(copies(server.stop()).values().all(|copies| *copies == 1));
    }
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn a_request_that_is_repeated_with_its_idempotency_key_during_a_stall_is_stored_once() {
    let post = |client: &mut Client| {
        let body = report("repeated");
        let head = format!(
            "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\nidempotency-key: a\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        client.send(head);
    };
    for ack in ["journal", "disk"] {
        let (file_system, server) = start(ack, &[("DEDUP_WINDOW", "1h"), ("COMMIT_TIMEOUT", "30s")]);
        let frozen = file_system.freeze();
        // One client resets its connection, and another one closes it. Both requests are still in progress.
        for reset in [true, false] {
            let mut client = connect(&server, LIMIT);
            post(&mut client);
            thread::sleep(Duration::from_millis(200)); // the server receives the request before the client goes away
            if reset {
                client.reset_on_drop();
            }
        }
        let mut waiting = connect(&server, LIMIT);
        post(&mut waiting);
        thaw(&server, frozen, "thawed");
        waiting.try_answer().unwrap().assert_ok();
        let mut late = connect(&server, LIMIT);
        post(&mut late);
        late.answer().assert_ok();
        assert_eq!(copies(server.stop())["repeated"], 1);
    }
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn a_request_that_was_refused_during_a_stall_and_is_repeated_with_its_idempotency_key_is_stored_once() {
    for ack in ["journal", "disk"] {
        let (file_system, server) = start(ack, &[("DEDUP_WINDOW", "1h")]);
        let header = "idempotency-key: a\r\n";
        let frozen = file_system.freeze();
        let mut client = connect(&server, LIMIT);
        let body = report("repeated");
        client.send(format!(
            "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\n{header}content-length: {}\r\n\r\n{body}",
            body.len()
        ));
        let answer = client.try_answer().unwrap_or_else(|error| panic!("no answer within {LIMIT:?}: {error}"));
        answer.assert_problem(503, "not-durable");
        thaw(&server, frozen, "thawed");
        server.post_with(header, &body).assert_ok();
        server.post_with(header, &body).assert_ok();
        assert_eq!(copies(server.stop())["repeated"], 1);
    }
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn a_shutdown_during_a_stall_finishes_after_it_with_all_acknowledged_reports() {
    for ack in ["journal", "disk"] {
        let (file_system, mut server) = start(ack, &[]);
        for n in 0..100 {
            server.post(report(&format!("acknowledged-{n}"))).assert_ok();
        }
        let frozen = file_system.freeze();
        let mut waiting = connect(&server, LIMIT);
        waiting.send(request(report("waiting").as_bytes()));
        server.signal(Signal::TERM);
        server.wait_for_log("shutting down", |_| true);
        wait_until("the port is closed", || TcpStream::connect(server.address).is_err().then_some(()));
        // The request ends with a refusal, or without an answer after SHUTDOWN_TIMEOUT.
        if let Ok(answer) = waiting.try_answer() {
            assert_eq!(answer.status, 503, "{}", answer.body);
        }
        assert!(server.is_running(), "the server has exited without its last flush");
        frozen.thaw();
        let thawed = Instant::now();
        assert_eq!(server.wait().code(), Some(0));
        println!("ACK={ack}: stopped {:?} after the stall", thawed.elapsed());
        assert!(thawed.elapsed() < LIMIT);
        let copies = copies(server.stored());
        assert_eq!(copies["first"], 1);
        assert!((0..100).all(|n| copies.get(&format!("acknowledged-{n}")) == Some(&1)), "{copies:?}");
        assert!(copies.values().all(|copies| *copies == 1), "{copies:?}");
    }
}

/// The states of the threads of a process: D for a thread that the kernel cannot interrupt, Z for one that has ended.
fn thread_states(server: &Server) -> Vec<char> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).into_iter().flatten().flatten();
    // A thread can end between the two calls.
    let states = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    states.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).collect()
}

#[test]
#[ignore = "requires root and e2fsprogs"]
fn a_second_signal_during_a_stall_ends_the_server_without_its_last_flush() {
    for ack in ["journal", "disk"] {
        let (file_system, mut server) = start(ack, &[("SHUTDOWN_TIMEOUT", "30s")]);
        let frozen = file_system.freeze();
        let mut waiting = connect(&server, LIMIT);
        waiting.send(request(report("waiting").as_bytes()));
        server.signal(Signal::TERM);
        server.wait_for_log("shutting down", |_| true);
        thread::sleep(Duration::from_millis(200)); // signals within 50 ms count as one
        assert!(server.is_running());
        server.signal(Signal::TERM);
        let signaled = Instant::now();
        // A thread that waits for the frozen disk cannot be ended, not even by SIGKILL. All others must be gone.
        wait_until("the server ends, except for threads that the kernel cannot interrupt", || {
            (!server.is_running() || thread_states(&server).iter().all(|state| "DZX".contains(*state))).then_some(())
        });
        println!("ACK={ack}: ended {:?} after the second signal", signaled.elapsed());
        assert!(signaled.elapsed() < Duration::from_secs(1), "{:?}", signaled.elapsed());
        frozen.thaw();
        assert_eq!(server.wait().code(), Some(1));
        assert!(server.stored().is_empty(), "the server has flushed after the second signal");
        let next = Server::start_in(&server.data_dir, &[("MIN_FREE_BYTES", "0")]);
        wait_until("the journal is recovered", || (!next.stored().is_empty()).then_some(()));
        let copies = copies(next.stop());
        assert_eq!(copies["first"], 1);
        assert!(copies.values().all(|copies| *copies == 1), "{copies:?}");
    }
}
