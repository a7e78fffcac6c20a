//! An orderly shutdown loses no acknowledged report and ends within its time limits.

mod common;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::thread;

use common::{Client, Server, wait_until};
use rustix::process::Signal;

/// A client that has sent a header. The 100 answer shows that the server has read the header.
fn client_with_open_request(server: &Server) -> Client {
    let mut client = server.connect();
    let head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 7\r\n\r\n";
    assert_eq!(client.ask(head, b"").status, 100);
    client
}

#[test]
fn sigterm_and_sigint_under_load_lose_no_acknowledged_report() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::start(&[
            ("MAX_BODY_BYTES", "1KiB"),
            ("BATCH_BYTES", "16KiB"),
            ("BUFFER_BYTES", "256KiB"),
            ("WORKERS", "4"),
        ]);
        let clients: Vec<_> = (0..16)
            .map(|connection| {
                let mut client = server.connect();
                thread::spawn(move || {
                    let mut acknowledged = Vec::new();
                    for n in 0.. {
                        let report = format!("{{\"connection\":{connection},\"n\":{n}}}");
                        if client.try_send(common::request(report.as_bytes())).is_err() {
                            break;
                        }
                        match client.try_answer() {
                            Ok(answer) if answer.status == 200 => acknowledged.push(report),
                            // A slow disk can fill the small buffer. During shutdown, requests can be refused.
                            Ok(answer) => {
                                let name = if answer.is_full() { "buffer-full" } else { "stopping" };
                                answer.assert_problem(503, name);
                            }
                            Err(error) => {
                                assert!(matches!(
                                    error.kind(),
                                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                                ));
                                break;
                            }
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        server.wait_for_log("published", |_| true);
        server.signal(signal);
        let acknowledged: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        assert!(server.wait().success());
        let stored = server.stored();
        let unique: HashSet<_> = stored.iter().collect();
        assert_eq!(unique.len(), stored.len(), "duplicate reports");
        assert!(acknowledged.len() > 100);
        assert!(acknowledged.iter().all(|report| unique.contains(report)));
    }
}

#[test]
fn shutdown_finishes_an_open_request_and_closes_idle_connections() {
    let server = Server::start(&[]);
    let mut idle = server.connect();
    idle.post("{}").assert_ok();
    let mut unused = server.connect();
    let mut busy = client_with_open_request(&server);
    server.post("{}").assert_ok();
    server.signal(Signal::TERM);
    idle.assert_closed();
    unused.assert_closed();
    wait_until("the port is closed", || TcpStream::connect(server.address).is_err().then_some(()));
    busy.send("{\"a\":1}");
    let answer = busy.answer();
    answer.assert_ok();
    assert_eq!(answer.headers["connection"], "close");
    let mut server = server;
    assert!(server.wait().success());
    let mut stored = server.stored();
    stored.sort();
    assert_eq!(stored, ["{\"a\":1}", "{}", "{}"]);
}

#[test]
fn an_unfinished_request_delays_shutdown_only_until_the_shutdown_timeout() {
    let server = Server::start(&[("SHUTDOWN_TIMEOUT", "100ms"), ("BODY_TIMEOUT", "1h")]);
    server.post("{}").assert_ok();
    let mut stuck = client_with_open_request(&server);
    assert_eq!(server.stop(), ["{}"]);
    stuck.assert_closed();
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut server = Server::start(&[("SHUTDOWN_DELAY", "1h")]);
    // Two signals that arrive together count as one. SIGSTOP makes them arrive together.
    server.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", server.id());
    wait_until("the process is suspended", || std::fs::read_to_string(&stat).unwrap().contains(") T ").then_some(()));
    server.signal(Signal::TERM);
    server.signal(Signal::INT);
    server.signal(Signal::CONT);
    server.wait_for_log("shutting down", |_| true);
    (0..20).for_each(|_| server.post("{}").assert_ok());
    let status = wait_until("the server ends", || {
        server.signal(Signal::INT);
        server.try_wait()
    });
    assert_eq!(status.code(), Some(1));
}

#[test]
fn no_report_is_lost_when_the_log_pipe_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_unheard(dir.path(), &[("FLUSH_INTERVAL", "10ms")]);
    for n in 0..3 {
        server.post(format!("{{\"n\":{n}}}")).assert_ok();
        wait_until("the report is published", || (server.stored().len() == n + 1).then_some(()));
    }
    server.post("{\"n\":3}").assert_ok();
    server.signal(Signal::TERM);
    assert!(server.wait().success());
    assert_eq!(server.stored().len(), 4);
}

#[test]
fn shutdown_retries_until_the_disk_is_back_and_keeps_the_batch_id() {
    let mut server = Server::start(&[]);
    server.post("{}").assert_ok();
    let journals = std::fs::read_dir(server.data_dir.join("journal")).unwrap();
    let names = journals.map(|file| file.unwrap().file_name().into_string().unwrap());
    let batch_id = names.filter_map(|name| Some(name.strip_suffix(".jsonl")?.to_owned())).next().unwrap();
    let moved = server.data_dir.with_extension("moved");
    std::fs::rename(&server.data_dir, &moved).unwrap();
    server.signal(Signal::TERM);
    server.wait_for_log("can't write a report file; retrying", |_| true);
    assert!(server.is_running());
    std::fs::rename(&moved, &server.data_dir).unwrap();
    assert!(server.wait().success());
    assert_eq!(server.stored(), ["{}"]);
    assert_eq!(common::report_files(&server.data_dir), [server.data_dir.join(format!("{batch_id}.jsonl.zst"))]);
}

#[test]
fn during_the_shutdown_delay_readyz_fails_and_each_connection_serves_one_more_request() {
    let mut server = Server::start(&[("SHUTDOWN_DELAY", "1h")]);
    let mut old = server.connect();
    old.post("{\"n\":1}").assert_ok();
    server.signal(Signal::TERM);
    let unready =
        wait_until("/readyz answers 503", || Some(server.get("/readyz")).filter(|answer| answer.status == 503));
    assert_eq!(unready.json()["reason"], "the server is shutting down");
    assert_eq!(server.get("/livez").status, 200);
    // The report is accepted. The server then closes the connection.
    let answer = old.post("{\"n\":2}");
    answer.assert_ok();
    assert_eq!(answer.headers["connection"], "close");
    old.assert_closed();
    server.post("{\"n\":3}").assert_ok();
    server.signal(Signal::KILL);
    server.wait();
    let restarted = Server::start_in(&server.data_dir, &[("SHUTDOWN_DELAY", "10ms")]);
    restarted.wait_for_log("recovered", |_| true);
    assert_eq!(restarted.stop().len(), 3);
}

#[test]
fn a_connection_that_is_not_yet_accepted_at_shutdown_gets_its_answer() {
    let server = Server::start(&[]);
    // This client never sends a request. It must not delay the shutdown.
    let _unused = server.connect();
    server.post("{\"n\":0}").assert_ok();
    server.signal(Signal::STOP);
    let mut clients: Vec<_> = (1..=20)
        .map(|n| {
            let mut client = server.connect();
            client.send(common::request(format!("{{\"n\":{n}}}").as_bytes()));
            client
        })
        .collect();
    server.signal(Signal::TERM);
    server.signal(Signal::CONT);
    for client in &mut clients {
        client.answer().assert_ok();
        client.assert_closed();
    }
    assert_eq!(server.stop().len(), 21);
}
