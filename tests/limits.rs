//! Slow, idle and greedy clients meet a bound, and the others don't notice.

mod common;

use common::{Server, wait_until};

const HEAD: &str = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n";

#[test]
fn a_header_that_does_not_end_in_time_closes_the_connection() {
    let server = Server::start(&[("HEADER_TIMEOUT", "50ms")]);
    let mut client = server.connect();
    client.send("POST /api/v1/reports HTTP/1.1\r\nhost: te");
    client.assert_closed();
    // The next one on a connection that has already been of use, too.
    let mut client = server.connect();
    client.post("{}").assert_ok();
    client.send("P");
    client.assert_closed();
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn a_body_that_does_not_end_in_time_is_a_408_however_steadily_it_trickles() {
    let server = Server::start(&[("BODY_TIMEOUT", "100ms")]);
    let mut client = server.connect();
    client.send(HEAD);
    let mut trickle = client.writer();
    let trickling = std::thread::spawn(move || {
        // Ends when the server has closed the connection, after 100 bytes at the latest.
        for _ in 0..99 {
            if std::io::Write::write_all(&mut trickle, b" ").is_err() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20)); // the pace of this client, not a wait
        }
    });
    client.answer().assert_problem(408, "body-timeout");
    client.assert_closed();
    trickling.join().unwrap();
    assert!(server.stop().is_empty());
}

#[test]
fn an_idle_connection_is_closed_before_and_after_a_request() {
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "2s"), ("HEADER_TIMEOUT", "1h"), ("BODY_TIMEOUT", "1h")]);
    server.connect().assert_closed();
    let mut client = server.connect();
    client.post("{}").assert_ok();
    client.assert_closed();
}

#[test]
fn time_outs_do_not_add_up_over_the_requests_of_a_connection() {
    // Each shorter than all the requests together take, and far longer than one of them.
    let server = Server::start(&[("HEADER_TIMEOUT", "3s"), ("BODY_TIMEOUT", "3s"), ("KEEP_ALIVE_TIMEOUT", "3s")]);
    let mut client = server.connect();
    let started = std::time::Instant::now();
    let mut requests = 0;
    while started.elapsed() < std::time::Duration::from_secs(4) {
        client.post("{}").assert_ok();
        requests += 1;
        std::thread::sleep(std::time::Duration::from_millis(20)); // the pace of this client, not a wait
    }
    assert_eq!(server.stop().len(), requests);
}

#[test]
fn a_client_beyond_the_cap_waits_until_another_one_leaves() {
    let server = Server::start(&[("MAX_CONNECTIONS", "2")]);
    let mut first = server.connect();
    first.post("{}").assert_ok();
    let mut second = server.connect();
    second.post("{}").assert_ok();
    let mut third = server.connect();
    third.send(common::request(b"{}"));
    server.wait_for_log("all connections are taken; new ones wait from now on", |_| true);
    first.post("{}").assert_ok();
    drop(first);
    third.answer().assert_ok();
    second.post("{}").assert_ok();
    assert_eq!(server.stop().len(), 5);
}

#[test]
fn the_rest_of_a_refused_body_is_not_taken_for_the_next_header() {
    let server = Server::start(&[("MAX_BODY_BYTES", "100"), ("HEADER_TIMEOUT", "300ms")]);
    let mut client = server.connect();
    client.send("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 200\r\n\r\n");
    client.answer().assert_problem(413, "too-large");
    client.send([b' '; 200]);
    std::thread::sleep(std::time::Duration::from_millis(600)); // how idle this client is, not a wait
    client.post("{}").assert_ok();
}

#[test]
fn connections_that_do_not_end_on_a_stop_are_counted() {
    let server = Server::start(&[("MAX_CONNECTIONS", "8"), ("SHUTDOWN_TIMEOUT", "50ms")]);
    let mut stuck = server.connect();
    let head = HEAD.replace("content-length", "expect: 100-continue\r\ncontent-length");
    assert_eq!(stuck.ask(&head, b"").status, 100);
    server.signal(rustix::process::Signal::TERM);
    let told = server.wait_for_log("some connections did not end in time; their requests are not answered", |_| true);
    assert_eq!(told["fields"]["open"], 1);
}

#[test]
fn headers_are_bounded_in_length_and_number() {
    let server = Server::start(&[]);
    let long = format!("GET /livez HTTP/1.1\r\nhost: test\r\nx: {}\r\n\r\n", "x".repeat(16 * 1024));
    assert_eq!(server.connect().ask(&long, b"").status, 431);
    let many = format!("GET /livez HTTP/1.1\r\nhost: test\r\n{}\r\n", "x: y\r\n".repeat(200));
    assert_eq!(server.connect().ask(&many, b"").status, 431);
    assert_eq!(server.get("/livez").status, 200);
}

#[test]
fn clients_that_go_away_in_mid_request_leave_nothing_behind() {
    let server = Server::start(&[("MAX_CONNECTIONS", "8")]);
    for n in 0..50 {
        let mut client = server.connect();
        client.send(&HEAD[..n]);
        let mut client = server.connect();
        client.send(HEAD);
        client.send("{\"a\":1");
    }
    wait_until("there is a place again", || (server.get("/readyz").status == 200).then_some(()));
    server.post("{}").assert_ok();
    assert_eq!(server.stop(), ["{}"]);
}
