//! Slow bodies do not keep the memory for bodies (`INFLIGHT_BYTES`) from other bodies.

mod common;

use std::net::Shutdown;

use common::{Answer, Client, Server, gzip, wait_until};

/// The announced and the sent bytes of a slow body.
const SLOW_BYTES: usize = 1_000_000;
const SENT_BYTES: usize = 144_000;

/// Opens connections that send only the beginning of a body, until the server refuses even short ones. Returns the
/// connections that it has not refused.
fn fill(server: &Server) -> Vec<Client> {
    let mut slow = Vec::new();
    for sent_bytes in [SENT_BYTES, 10_000, 100] {
        let head = format!("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: {SLOW_BYTES}\r\n\r\n ");
        let before = slow.len();
        wait_until("the slow bodies use all memory", || {
            let mut client = server.connect();
            client.send(&head);
            client.send(vec![b' '; sent_bytes - 1]);
            slow.push(client);
            slow[before..].iter().any(is_answered).then_some(())
        });
        slow.retain(|client| !is_answered(client));
    }
    slow
}

/// Whether the answer has arrived.
fn is_answered(client: &Client) -> bool {
    let stream = client.writer();
    stream.set_nonblocking(true).unwrap();
    let answered = stream.peek(&mut [0]).is_ok();
    stream.set_nonblocking(false).unwrap();
    answered
}

fn start() -> Server {
    let settings = [("INFLIGHT_BYTES", "4MiB"), ("BODY_TIMEOUT", "1h"), ("TRUSTED_PROXIES", "127.0.0.0/8")];
    Server::start(&settings)
}

/// A gzip body, and a body that arrives in several pieces.
fn bodies() -> [(&'static str, Vec<u8>); 2] {
    let long = format!("{{\"long\":\"{}\"}}", "x".repeat(40_000));
    [("content-encoding: gzip\r\n", gzip("{\"gzip\":1}")), ("", long.into_bytes())]
}

#[test]
fn a_client_gets_memory_at_once_although_slow_bodies_of_another_address_use_all() {
    let server = start();
    let from = |n: u8| format!("x-forwarded-for: 192.0.2.{n}\r\n");
    // This body is older than all others, and idle. But its client is within its share.
    let mut patient = server.connect();
    let head =
        format!("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\n{}content-length: {SLOW_BYTES}\r\n\r\n", from(1));
    patient.send([head.as_bytes(), &[b' '; SENT_BYTES]].concat());
    let mut slow = fill(&server);
    for (headers, body) in bodies() {
        server.post_with(&format!("{headers}{}", from(2)), body).assert_ok();
    }
    patient.send(format!("{}{{}}", " ".repeat(SLOW_BYTES - SENT_BYTES - 2)));
    patient.answer().assert_ok();
    // Slow clients that were evicted are told so.
    let evicted = wait_until("a slow body is evicted", || slow.iter().position(is_answered));
    slow[evicted].answer().assert_problem(503, "too-many-in-flight");
    drop(slow);
    assert_eq!(server.stop().len(), 3);
}

#[test]
fn a_client_gets_memory_soon_although_slow_bodies_of_its_own_address_use_all() {
    let server = start();
    let slow = fill(&server);
    // Without any of the slow bodies ending. They become idle in half a second.
    let post = |(headers, body): &(&str, Vec<u8>)| -> Answer { server.post_with(headers, body) };
    for body in bodies() {
        wait_until("the body is accepted", || Some(post(&body)).filter(|answer| answer.status == 200)).assert_ok();
    }
    drop(slow);
    assert_eq!(server.stop().len(), 2);
}

#[test]
fn slow_bodies_are_charged_for_what_they_have_sent_and_not_for_what_they_announce() {
    let server = start();
    let slow: Vec<_> = (0..200)
        .map(|_| {
            let mut client = server.connect();
            client.send("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000\r\n\r\n1");
            client
        })
        .collect();
    for (headers, body) in bodies() {
        server.post_with(headers, body).assert_ok();
    }
    // Nobody was evicted.
    for mut client in slow {
        client.writer().shutdown(Shutdown::Write).unwrap();
        client.answer().assert_problem(400, "body-broken");
    }
}

#[test]
fn a_body_of_very_many_tiny_pieces_is_refused_and_one_of_fewer_pieces_is_accepted() {
    let server = Server::start(&[]);
    let chunked = |bytes: usize, piece: usize| {
        let body = format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        let chunk = |chunk: &[u8]| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
        let chunks: Vec<_> = body.as_bytes().chunks(piece).flat_map(chunk).collect();
        let head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
        [head.as_bytes(), &chunks, b"0\r\n\r\n"].concat()
    };
    let ask = |request: Vec<u8>| {
        let mut client = server.connect();
        let mut writer = client.writer();
        // The server may close the connection before it has read everything.
        let sender = std::thread::spawn(move || drop(std::io::Write::write_all(&mut writer, &request)));
        let answer = client.answer();
        sender.join().unwrap();
        answer
    };
    ask(chunked(16_000, 1)).assert_ok();
    ask(chunked(400_000, 16)).assert_ok();
    ask(chunked(20_000, 1)).assert_problem(400, "too-many-pieces");
    ask(chunked(400_000, 8)).assert_problem(400, "too-many-pieces");
    // A connection is still usable afterwards.
    server.post("{}").assert_ok();
    assert_eq!(server.stop().len(), 3);
}
