//! Slow, idle and greedy clients are limited, and other clients are not affected.

mod common;

use common::{Server, wait_until};

const HEAD: &str = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n";

#[test]
fn a_header_that_is_late_closes_the_connection() {
    let server = Server::start(&[("HEADER_TIMEOUT", "50ms")]);
    let mut client = server.connect();
    client.send("POST /api/v1/reports HTTP/1.1\r\nhost: te");
    client.assert_closed();
    // The same applies to the second header on a connection.
    let mut client = server.connect();
    client.post("{}").assert_ok();
    client.send("P");
    client.assert_closed();
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn a_body_that_is_late_is_answered_408_even_if_its_bytes_arrive_steadily() {
    let server = Server::start(&[("BODY_TIMEOUT", "100ms")]);
    let mut client = server.connect();
    client.send(HEAD);
    let mut trickle = client.writer();
    let trickling = std::thread::spawn(move || {
        // Sends 99 of the 100 bytes at most. Writing fails after the server has closed the connection.
        for _ in 0..99 {
            if std::io::Write::write_all(&mut trickle, b" ").is_err() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20)); // sets the pace of this client
        }
    });
    client.answer().assert_problem(408, "body-timeout");
    client.assert_closed();
    trickling.join().unwrap();
    assert!(server.stop().is_empty());
}

#[test]
fn an_idle_connection_is_closed_before_its_first_request_and_after_a_request() {
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "2s"), ("HEADER_TIMEOUT", "1h"), ("BODY_TIMEOUT", "1h")]);
    server.connect().assert_closed();
    let mut client = server.connect();
    client.post("{}").assert_ok();
    client.assert_closed();
}

#[test]
fn timeouts_start_again_with_each_request_of_a_connection() {
    // Each timeout is shorter than all requests together, and much longer than one request.
    let server = Server::start(&[("HEADER_TIMEOUT", "3s"), ("BODY_TIMEOUT", "3s"), ("KEEP_ALIVE_TIMEOUT", "3s")]);
    let mut client = server.connect();
    let started = std::time::Instant::now();
    let mut requests = 0;
    while started.elapsed() < std::time::Duration::from_secs(4) {
        client.post("{}").assert_ok();
        requests += 1;
        std::thread::sleep(std::time::Duration::from_millis(20)); // sets the pace of this client
    }
    assert_eq!(server.stop().len(), requests);
}

#[test]
fn a_client_beyond_max_connections_waits_until_another_one_disconnects() {
    let server = Server::start(&[("MAX_CONNECTIONS", "2")]);
    let mut first = server.connect();
    first.post("{}").assert_ok();
    let mut second = server.connect();
    second.post("{}").assert_ok();
    let mut third = server.connect();
    third.send(common::request(b"{}"));
    server.wait_for_log("MAX_CONNECTIONS reached; new connections wait", |_| true);
    first.post("{}").assert_ok();
    drop(first);
    third.answer().assert_ok();
    second.post("{}").assert_ok();
    assert_eq!(server.stop().len(), 5);
}

#[test]
fn the_rest_of_a_refused_body_does_not_start_the_header_timeout() {
    let server = Server::start(&[("MAX_BODY_BYTES", "100"), ("HEADER_TIMEOUT", "300ms")]);
    let mut client = server.connect();
    client.send("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 200\r\n\r\n");
    client.answer().assert_problem(413, "too-large");
    client.send([b' '; 200]);
    std::thread::sleep(std::time::Duration::from_millis(600)); // longer than HEADER_TIMEOUT
    client.post("{}").assert_ok();
}

#[test]
fn the_log_counts_the_connections_that_do_not_finish_within_the_shutdown_timeout() {
    let server = Server::start(&[("MAX_CONNECTIONS", "8"), ("SHUTDOWN_TIMEOUT", "50ms")]);
    let mut stuck = server.connect();
    let head = HEAD.replace("content-length", "expect: 100-continue\r\ncontent-length");
    assert_eq!(stuck.ask(&head, b"").status, 100);
    server.signal(rustix::process::Signal::TERM);
    let warning = server.wait_for_log(
        "some connections did not finish within SHUTDOWN_TIMEOUT; closing them without an answer",
        |_| true,
    );
    assert_eq!(warning["fields"]["open"], 1);
}

#[test]
fn headers_are_limited_in_size_and_number() {
    let server = Server::start(&[]);
    let long = format!("GET /livez HTTP/1.1\r\nhost: test\r\nx: {}\r\n\r\n", "x".repeat(16 * 1024));
    assert_eq!(server.connect().ask(&long, b"").status, 431);
    let many = format!("GET /livez HTTP/1.1\r\nhost: test\r\n{}\r\n", "x: y\r\n".repeat(200));
    assert_eq!(server.connect().ask(&many, b"").status, 431);
    assert_eq!(server.get("/livez").status, 200);
}

#[test]
fn clients_that_disconnect_during_a_request_leave_nothing_behind() {
    let server = Server::start(&[("MAX_CONNECTIONS", "8")]);
    for n in 0..50 {
        let mut client = server.connect();
        client.send(&HEAD[..n]);
        let mut client = server.connect();
        client.send(HEAD);
        client.send("{\"a\":1");
    }
    wait_until("the server accepts a connection again", || (server.get("/readyz").status == 200).then_some(()));
    server.post("{}").assert_ok();
    assert_eq!(server.stop(), ["{}"]);
}
