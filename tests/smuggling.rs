//! Request smuggling: requests that contain a hidden request. The hidden request takes effect if the server and a
//! load balancer disagree about where the first request ends.
//!
//! The server must refuse such a request, or read it in the one obvious way. It may store a report only if the sender
//! of the report gets a 200.
//!
//! `make balancers` sends the same requests through HAProxy and nginx. There, the server must not see a request that
//! the load balancer did not see.

mod common;

use std::thread;

use common::balancer::{ASK_HEALTH, Balancer, Kind};
use common::{Client, Server, request};

/// The body of the answer to one acknowledged report.
const OK: &str = "{\"status\":\"ok\",\"accepted\":1}\n";

/// Bytes that are sent over a new connection, and the expected answers until the connection is closed.
struct Attempt {
    name: String,
    bytes: String,
    /// The expected statuses without a load balancer.
    statuses: &'static [u16],
}

/// The hidden request. It is a valid request.
fn hidden(name: &str) -> String {
    String::from_utf8(request(format!("{{\"hidden\":\"{name}\"}}").as_bytes())).unwrap()
}

fn report(name: &str) -> String {
    format!("{{\"report\":\"{name}\"}}")
}

fn post(headers: &str, body: &str) -> String {
    format!("POST /api/v1/reports HTTP/1.1\r\nHost: test\r\n{headers}\r\n\r\n{body}")
}

fn attempts() -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut add =
        |name: &str, bytes: String, statuses| attempts.push(Attempt { name: name.to_owned(), bytes, statuses });

    // Content-Length contradicts the chunks. A long length includes the hidden request, and the chunks do not. A short
    // length excludes the hidden request, and the chunks contain it.
    let refused: &[u16] = &[400];
    let by_chunks: &[u16] = &[200]; // the server reads nothing after the last chunk
    let by_length: &[u16] = &[400, 200, 400]; // the first body is not JSON; the hidden request is a separate request
    let mut length_and_chunks = |name: &str, encoding: &str, long_statuses, short_statuses| {
        let long = format!("{name}, long length");
        let body = format!("{:x}\r\n{}\r\n0\r\n\r\n{}", report(&long).len(), report(&long), hidden(&long));
        add(&long, post(&format!("Content-Length: {}\r\n{encoding}", body.len()), &body), long_statuses);
        let last = format!("{name}, long length last");
        let body = format!("{:x}\r\n{}\r\n0\r\n\r\n{}", report(&last).len(), report(&last), hidden(&last));
        add(&last, post(&format!("{encoding}\r\nContent-Length: {}", body.len()), &body), long_statuses);
        let short = format!("{name}, short length");
        let size = format!("{:x}\r\n", hidden(&short).len());
        let body = format!("{size}{}\r\n0\r\n\r\n", hidden(&short));
        add(&short, post(&format!("Content-Length: {}\r\n{encoding}", size.len()), &body), short_statuses);
    };
    for (name, encoding, long_statuses, short_statuses) in [
        ("chunked", "Transfer-Encoding: chunked", by_chunks, refused),
        ("uppercase", "TRANSFER-ENCODING: CHUNKED", by_chunks, refused),
        ("a tab before the value", "Transfer-Encoding:\tchunked", by_chunks, refused),
        ("a space after the value", "Transfer-Encoding: chunked ", by_chunks, refused),
        ("a coding before chunked", "Transfer-Encoding: identity, chunked", by_chunks, refused),
        ("chunked twice", "Transfer-Encoding: chunked, chunked", by_chunks, refused),
        ("a coding after chunked", "Transfer-Encoding: chunked, identity", refused, refused),
        ("an unknown coding", "Transfer-Encoding: xchunked", refused, refused),
        ("a quoted coding", "Transfer-Encoding: \"chunked\"", refused, refused),
        ("a parameter", "Transfer-Encoding: chunked;a=b", refused, refused),
        ("no coding", "Transfer-Encoding:", refused, refused),
        ("a vertical tab", "Transfer-Encoding: \x0bchunked", refused, refused),
        ("a NUL", "Transfer-Encoding: chunked\0", refused, refused),
        ("a space before the colon", "Transfer-Encoding : chunked", refused, refused),
        ("no colon", "Transfer-Encoding chunked", refused, refused),
        ("two lines, the last unknown", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x", refused, refused),
        ("two lines, the first unknown", "Transfer-Encoding: x\r\nTransfer-Encoding: chunked", by_chunks, refused),
        ("a folded value", "Transfer-Encoding:\r\n chunked", refused, refused),
        ("folded into another header", "X: y\r\n Transfer-Encoding: chunked", refused, refused),
        ("after a bare LF", "X: y\nTransfer-Encoding: chunked", by_chunks, refused),
        ("after a bare CR", "X: y\rTransfer-Encoding: chunked", refused, refused),
        ("an underscore in the name", "Transfer_Encoding: chunked", refused, by_length),
        ("listed in Connection", "Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding", by_chunks, refused),
    ] {
        length_and_chunks(name, encoding, long_statuses, short_statuses);
    }
    let name = "chunks in HTTP/1.0";
    let body = format!("0\r\n\r\n{}", hidden(name));
    let headers = format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive", body.len());
    add(name, post(&headers, &body).replacen("HTTP/1.1", "HTTP/1.0", 1), refused);

    // Malformed or ambiguous lengths. SHORT excludes the hidden request, and LONG includes it. OVERFLOW equals SHORT in
    // 64-bit arithmetic.
    let mut lengths = |name: &str, headers: &str, statuses| {
        let body = report(name) + &hidden(name);
        let headers = headers.replace("OVERFLOW", &((1 << 64) + report(name).len() as u128).to_string());
        let headers = headers.replace("SHORT", &report(name).len().to_string());
        add(name, post(&headers.replace("LONG", &body.len().to_string()), &body), statuses);
    };
    lengths("two lengths, short first", "Content-Length: SHORT\r\nContent-Length: LONG", refused);
    lengths("two lengths, long first", "Content-Length: LONG\r\nContent-Length: SHORT", refused);
    lengths("a list of lengths", "Content-Length: SHORT, LONG", refused);
    lengths("a list that repeats one length", "Content-Length: SHORT, SHORT", refused);
    lengths("two equal lengths", "Content-Length: SHORT\r\nContent-Length: SHORT", &[200, 200]);
    lengths("a length with a sign", "Content-Length: +SHORT", refused);
    lengths("a negative length", "Content-Length: -SHORT", refused);
    lengths("a hexadecimal length", "Content-Length: 0xSHORT", refused);
    lengths("a length with leading zeros", "Content-Length: 000SHORT", &[200, 200]);
    lengths("a length with a space in it", "Content-Length: SHORT LONG", refused);
    lengths("a length that overflows", "Content-Length: OVERFLOW", refused);
    lengths("an empty length, then a length", "Content-Length:\r\nContent-Length: SHORT", refused);
    lengths("a length after a header without a name", ": x\r\nContent-Length: SHORT", refused);
    lengths("a length before a bare CR", "Content-Length: SHORT\rX: y", refused);
    lengths("a length before a NUL", "Content-Length: SHORT\0", refused);
    lengths("a folded length", "Content-Length:\r\n SHORT", refused);
    lengths("a length with an underscore in its name", "Content_Length: LONG", &[400, 400]);
    lengths("a length with a space before its colon", "Content-Length : SHORT", refused);
    lengths("a length listed in Connection", "Content-Length: LONG\r\nConnection: keep-alive, Content-Length", refused);
    lengths("a length with Expect: 100-continue", "Content-Length: LONG\r\nExpect: 100-continue", &[100, 400]);
    lengths("a length with an unknown expectation", "Content-Length: LONG\r\nExpect: y 100-continue", refused);
    lengths("an upgrade", "Content-Length: LONG\r\nConnection: Upgrade\r\nUpgrade: websocket", refused);
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA";
    lengths("an upgrade to HTTP/2", &format!("Content-Length: LONG\r\n{h2c}"), refused);
    lengths("a request after Connection: close", "Content-Length: SHORT\r\nConnection: close", &[200]);

    // Malformed or ambiguous chunks. SIZE is the size of REPORT, and SIZE OF HIDDEN is the size of HIDDEN.
    let mut chunks = |name: &str, text: &str, statuses| {
        let text = text.replace("SIZE OF HIDDEN", &format!("{:x}", hidden(name).len()));
        let text = text.replace("SIZE", &format!("{:x}", report(name).len()));
        let body = text.replace("REPORT", &report(name)).replace("HIDDEN", &hidden(name));
        add(name, post("Transfer-Encoding: chunked", &body), statuses);
    };
    chunks("valid chunks", "SIZE\r\nREPORT\r\n0\r\n\r\n", &[200]);
    chunks("a chunk extension", "SIZE;a=b;c=\"d\"\r\nREPORT\r\n0\r\n\r\n", &[200]);
    let quoted = "SIZE;a=\"\r\nREPORT\r\n0\r\n\r\nHIDDEN\"\r\n0\r\n\r\n";
    chunks("a line break in an extension", quoted, &[200, 200, 400]); // a line break ends an extension, also in quotes
    chunks("a bare LF in an extension", "SIZE;\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    let more_chunks = "SIZE;\nREPORT\r\nSIZE OF HIDDEN\r\nHIDDEN\r\n0\r\n\r\n";
    chunks("a bare LF in an extension, more chunks", more_chunks, refused);
    chunks("a bare LF after a size", "SIZE\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a bare CR after a size", "SIZE\rREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a bare LF after a chunk", "SIZE\r\nREPORT\n0\r\n\r\nHIDDEN", refused);
    chunks("a bare CR after a chunk", "SIZE\r\nREPORT\r0\r\n\r\nHIDDEN", refused);
    chunks("a chunk that is longer than its size", "2\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a size that overflows", "100000000000000SIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a size with the prefix 0x", "0xSIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a size with a sign", "+SIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a negative size", "-SIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a negative zero", "SIZE\r\nREPORT\r\n-0\r\n\r\nHIDDEN", refused);
    chunks("an underscore in a size", "0_SIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a NUL after a size", "SIZE\0\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a space before a size", " SIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a space after a size", "SIZE \r\nREPORT\r\n0 \r\n\r\nHIDDEN", &[200, 200]);
    chunks("a size with leading zeros", "0000SIZE\r\nREPORT\r\n0000\r\n\r\nHIDDEN", &[200, 200]);
    chunks("no size", "SIZE\r\nREPORT\r\n\r\n\r\nHIDDEN", refused);
    chunks("a last chunk without an empty line", "SIZE\r\nREPORT\r\n0\r\nHIDDEN", refused);
    chunks("a last chunk that does not end", "SIZE\r\nREPORT\r\n0\r\n", &[408]);
    let trailers = "SIZE\r\nREPORT\r\n0\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\nHIDDEN";
    chunks("trailers with a length and an encoding", trailers, &[200, 200]);
    chunks("a folded trailer", "SIZE\r\nREPORT\r\n0\r\nX: y\r\n z\r\n\r\nHIDDEN", refused);

    // Malformed or ambiguous lines. A reader that ends lines differently sees other headers or another body.
    let mut line = |name: &str, first: &str, headers: &str, statuses| {
        let (first, length) = (first.replace("TARGET", "/api/v1/reports"), report(name).len());
        add(name, format!("{first}\r\n{headers}Content-Length: {length}\r\n\r\n{}", report(name)), statuses);
    };
    let first = "POST TARGET HTTP/1.1";
    let host = "Host: test\r\n";
    line("a valid request", first, host, &[200]);
    line("empty lines before the request", &format!("\r\n\r\n{first}"), host, &[200]);
    line("a space before the first header", &format!("{first}\r\n X: y"), host, refused);
    line("a folded header", first, "Host: test\r\nX: y\r\n z\r\n", refused);
    line("a space before a colon", first, "Host: test\r\nX : y\r\n", refused);
    line("a NUL in a value", first, "Host: test\r\nX: \0\r\n", refused);
    line("a NUL in a name", first, "Host: test\r\nX\0: y\r\n", refused);
    line("a bare CR in a value", first, "Host: test\r\nX: y\rz\r\n", refused);
    line("two spaces before the target", "POST  TARGET HTTP/1.1", host, refused);
    line("two spaces after the target", "POST TARGET  HTTP/1.1", host, refused);
    line("a tab in the request line", "POST\tTARGET HTTP/1.1", host, refused);
    line("a space after the version", "POST TARGET HTTP/1.1 ", host, refused);
    line("no version", "POST TARGET", host, refused);
    line("an unknown version", "POST TARGET HTTP/1.2", host, refused);
    line("HTTP/2 without its preface", "POST TARGET HTTP/2.0", host, refused);
    line("an absolute target and another host", "POST http://other/api/v1/reports HTTP/1.1", host, &[200]);
    // hyper accepts invalid hosts. This is harmless, because the server does not use the host.
    line("two hosts", first, "Host: test\r\nHost: other\r\n", &[200]);
    line("no host", first, "", &[200]);
    line("an invalid host", first, "Host: a b/c\r\n", &[200]);
    let name = "a bare LF at the end of each line";
    let head = post(&format!("Content-Length: {}", report(name).len()), "").replace("\r\n", "\n");
    add(name, head + &report(name), &[200]);

    // The hidden request is the body of a request whose body the server does not use.
    let mut unread = |name: &str, first: &str, headers: &str, statuses| {
        let body = hidden(name);
        let length = body.len();
        add(name, format!("{first}\r\nHost: test\r\n{headers}Content-Length: {length}\r\n\r\n{body}"), statuses);
    };
    unread("a GET with a body", "GET /.well-known/healthcheck.json HTTP/1.1", "", &[200]);
    unread("an unknown path", "POST /other HTTP/1.1", "", &[404]);
    unread("a method that is not allowed", "PUT /api/v1/reports HTTP/1.1", "", &[405]);
    let preflight = "Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n";
    unread("a preflight with a body", "OPTIONS /api/v1/reports HTTP/1.1", preflight, &[204]);
    unread("an unsupported type", "POST /api/v1/reports HTTP/1.1", "Content-Type: image/png\r\n", &[415]);
    unread("an unsupported encoding", "POST /api/v1/reports HTTP/1.1", "Content-Encoding: compress\r\n", &[415]);
    unread("CONNECT", "CONNECT /api/v1/reports HTTP/1.1", "", &[405]);
    attempts
}

/// The answers to one attempt.
#[derive(Debug)]
struct Answers {
    statuses: Vec<u16>,
    /// Number of acknowledged reports.
    acknowledged: usize,
}

/// Sends `bytes` and reads all answers until the connection is closed.
fn exchange(mut client: Client, bytes: &str) -> Answers {
    client.send(bytes);
    let mut answers = Answers { statuses: Vec::new(), acknowledged: 0 };
    while let Ok(answer) = client.try_any_answer() {
        answers.statuses.push(answer.status);
        answers.acknowledged += usize::from(answer.body == OK);
    }
    answers
}

/// Number of stored reports of this attempt: its own and the hidden one.
fn count_stored(stored: &[String], name: &str) -> usize {
    stored.iter().filter(|line| line.ends_with(&format!(":\"{name}\"}}"))).count()
}

#[test]
fn smuggling_attempts_get_the_expected_answers_and_store_only_acknowledged_reports() {
    let attempts = attempts();
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "2s"), ("HEADER_TIMEOUT", "2s"), ("BODY_TIMEOUT", "2s")]);
    // The attempts run in parallel, because each waits until the server closes its connection.
    let answers = thread::scope(|scope| {
        let threads: Vec<_> =
            attempts.iter().map(|attempt| scope.spawn(|| exchange(server.connect(), &attempt.bytes))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let stored = server.stop();
    let mut wrong = Vec::new();
    for (Attempt { name, statuses, .. }, answers) in attempts.iter().zip(answers) {
        let stored = count_stored(&stored, name);
        if answers.statuses != *statuses || stored != answers.acknowledged {
            wrong.push(format!("{name}: {answers:?}, expected {statuses:?}; stored: {stored}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Checks that each stored report was answered 200 to its sender, and that other clients get only their own answers.
fn assert_no_smuggling_through(kind: Kind, changes: &[(&str, &str)]) {
    let server = Server::start(&[("HEADER_TIMEOUT", "500ms"), ("BODY_TIMEOUT", "500ms")]);
    let balancer = Balancer::start(kind, [server.address; 2], changes);
    let mut probes = 0;
    let mut wrong = Vec::new();
    for Attempt { name, bytes, .. } in attempts() {
        let answers = exchange(balancer.connect(), &bytes);
        println!("{name:50} {:?}", answers.statuses);
        // An unexpected answer would reach the next client whose request uses the same connection to the server.
        for _ in 0..2 {
            let health = balancer.connect().ask_any(ASK_HEALTH);
            assert!(health.status == 200 && health.body.contains("uptime"), "after {name}: {health:?}");
            let answer = balancer.connect().ask_any(request(format!("{{\"probe\":{probes}}}").as_bytes()));
            assert!(answer.status == 200 && answer.body == OK, "after {name}: {answer:?}");
            probes += 1;
        }
        wrong.push((name, answers));
    }
    drop(balancer);
    let stored = server.stop();
    wrong.retain(|(name, answers)| count_stored(&stored, name) != answers.acknowledged);
    assert!(wrong.is_empty(), "{wrong:#?}");
    let expected: Vec<_> = (0..probes).map(|probe| format!("{{\"probe\":{probe}}}")).collect();
    let mut found: Vec<_> = stored.iter().filter(|line| line.contains("probe")).cloned().collect();
    found.sort_by_key(|line| (line.len(), line.clone()));
    assert_eq!(found, expected);
}

// The load balancer has one thread and one server, so all clients share one connection to the server. Its timeouts are
// short, because some attempts never end.

#[test]
#[ignore = "requires haproxy: make balancers"]
fn no_request_is_smuggled_through_haproxy() {
    let changes = [
        ("global\n    user", "global\n    nbthread 1\n    user"),
        ("    server collector-2 \"${COLLECTOR_2-collector-2:8080}\"\n", ""),
        ("timeout http-request 30s", "timeout http-request 500ms"),
        ("timeout http-keep-alive 60s", "timeout http-keep-alive 500ms"),
    ];
    assert_no_smuggling_through(Kind::HaProxy, &changes);
}

#[test]
#[ignore = "requires nginx: make balancers"]
fn no_request_is_smuggled_through_nginx() {
    let changes = [
        ("worker_processes auto", "worker_processes 1"),
        ("client_header_timeout 10s", "client_header_timeout 500ms"),
        ("client_body_timeout 30s", "client_body_timeout 500ms"),
        ("keepalive_timeout 60s", "keepalive_timeout 500ms"),
    ];
    assert_no_smuggling_through(Kind::Nginx, &changes);
}
