//! Requests that hide another one, for a reader that ends them elsewhere than the reader before it did. Each is refused,
//! or is taken as what it plainly is; and whatever is kept was answered with a 200 to the one who sent it.
//!
//! The same through HAProxy and nginx, where the collector must not see a request that the load balancer did not:
//! `make balancers`.

mod common;

use std::thread;

use common::balancer::{ASK_HEALTH, Balancer, Kind};
use common::{Client, Server, request};

/// The answer to one report that is kept.
const OK: &str = "{\"status\":\"ok\",\"accepted\":1}";

/// What is sent over a connection of its own, and what comes back until it is closed.
struct Try {
    name: String,
    bytes: String,
    /// The statuses, without a load balancer.
    answers: &'static [u16],
}

/// The request that is hidden: by itself, there is nothing wrong with it.
fn hidden(name: &str) -> String {
    String::from_utf8(request(format!("{{\"hidden\":\"{name}\"}}").as_bytes())).unwrap()
}

fn report(name: &str) -> String {
    format!("{{\"report\":\"{name}\"}}")
}

fn post(headers: &str, body: &str) -> String {
    format!("POST /api/v1/reports HTTP/1.1\r\nHost: test\r\n{headers}\r\n\r\n{body}")
}

fn tries() -> Vec<Try> {
    let mut tries = Vec::new();
    let mut add = |name: &str, bytes: String, answers| tries.push(Try { name: name.to_owned(), bytes, answers });

    // A length against chunks: either covers what the other does not.
    let one_ends: &[u16] = &[200]; // by its chunks; nothing that follows is read
    let refused: &[u16] = &[400];
    let by_length: &[u16] = &[400, 200, 400]; // of no JSON; and the next request is there for all to see
    let mut length_and_chunks = |name: &str, encoding: &str, covers_all, covers_little| {
        let all = format!("{name}, all");
        let body = format!("{:x}\r\n{}\r\n0\r\n\r\n{}", report(&all).len(), report(&all), hidden(&all));
        add(&all, post(&format!("Content-Length: {}\r\n{encoding}", body.len()), &body), covers_all);
        let first = format!("{name}, length last");
        let body = format!("{:x}\r\n{}\r\n0\r\n\r\n{}", report(&first).len(), report(&first), hidden(&first));
        add(&first, post(&format!("{encoding}\r\nContent-Length: {}", body.len()), &body), covers_all);
        let little = format!("{name}, little");
        let size = format!("{:x}\r\n", hidden(&little).len());
        let body = format!("{size}{}\r\n0\r\n\r\n", hidden(&little));
        add(&little, post(&format!("Content-Length: {}\r\n{encoding}", size.len()), &body), covers_little);
    };
    for (name, encoding, covers_all, covers_little) in [
        ("chunked", "Transfer-Encoding: chunked", one_ends, refused),
        ("capitals", "TRANSFER-ENCODING: CHUNKED", one_ends, refused),
        ("a tab before the value", "Transfer-Encoding:\tchunked", one_ends, refused),
        ("a space behind the value", "Transfer-Encoding: chunked ", one_ends, refused),
        ("a coding before chunked", "Transfer-Encoding: identity, chunked", one_ends, refused),
        ("chunked twice", "Transfer-Encoding: chunked, chunked", one_ends, refused),
        ("a coding behind chunked", "Transfer-Encoding: chunked, identity", refused, refused),
        ("an unknown coding", "Transfer-Encoding: xchunked", refused, refused),
        ("quotes", "Transfer-Encoding: \"chunked\"", refused, refused),
        ("a parameter", "Transfer-Encoding: chunked;a=b", refused, refused),
        ("no coding", "Transfer-Encoding:", refused, refused),
        ("a vertical tab", "Transfer-Encoding: \x0bchunked", refused, refused),
        ("a NUL", "Transfer-Encoding: chunked\0", refused, refused),
        ("a space before the colon", "Transfer-Encoding : chunked", refused, refused),
        ("no colon", "Transfer-Encoding chunked", refused, refused),
        ("two lines, the last unknown", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x", refused, refused),
        ("two lines, the first unknown", "Transfer-Encoding: x\r\nTransfer-Encoding: chunked", one_ends, refused),
        ("a folded value", "Transfer-Encoding:\r\n chunked", refused, refused),
        ("folded into another header", "X: y\r\n Transfer-Encoding: chunked", refused, refused),
        ("behind a bare LF", "X: y\nTransfer-Encoding: chunked", one_ends, refused),
        ("behind a bare CR", "X: y\rTransfer-Encoding: chunked", refused, refused),
        ("an underscore", "Transfer_Encoding: chunked", refused, by_length),
        ("named in Connection", "Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding", one_ends, refused),
    ] {
        length_and_chunks(name, encoding, covers_all, covers_little);
    }
    let name = "chunked in HTTP/1.0";
    let body = format!("0\r\n\r\n{}", hidden(name));
    let headers = format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive", body.len());
    add(name, post(&headers, &body).replacen("HTTP/1.1", "HTTP/1.0", 1), refused);

    // Lengths: SHORT ends before the hidden request, LONG behind it, and OVERFLOW is SHORT to who counts with 64 bits.
    let mut lengths = |name: &str, headers: &str, answers| {
        let body = report(name) + &hidden(name);
        let headers = headers.replace("OVERFLOW", &((1 << 64) + report(name).len() as u128).to_string());
        let headers = headers.replace("SHORT", &report(name).len().to_string());
        add(name, post(&headers.replace("LONG", &body.len().to_string()), &body), answers);
    };
    lengths("two lengths, short first", "Content-Length: SHORT\r\nContent-Length: LONG", refused);
    lengths("two lengths, long first", "Content-Length: LONG\r\nContent-Length: SHORT", refused);
    lengths("a list of lengths", "Content-Length: SHORT, LONG", refused);
    lengths("a list of one length", "Content-Length: SHORT, SHORT", refused);
    lengths("one length twice", "Content-Length: SHORT\r\nContent-Length: SHORT", &[200, 200]);
    lengths("a length with a sign", "Content-Length: +SHORT", refused);
    lengths("a negative length", "Content-Length: -SHORT", refused);
    lengths("a length in base 16", "Content-Length: 0xSHORT", refused);
    lengths("a length with zeros before it", "Content-Length: 000SHORT", &[200, 200]);
    lengths("a length with a space in it", "Content-Length: SHORT LONG", refused);
    lengths("a length that overflows", "Content-Length: OVERFLOW", refused);
    lengths("no length, then a length", "Content-Length:\r\nContent-Length: SHORT", refused);
    lengths("a length behind a header without a name", ": x\r\nContent-Length: SHORT", refused);
    lengths("a length before a bare CR", "Content-Length: SHORT\rX: y", refused);
    lengths("a length before a NUL", "Content-Length: SHORT\0", refused);
    lengths("a folded length", "Content-Length:\r\n SHORT", refused);
    lengths("a length with an underscore", "Content_Length: LONG", &[400, 400]);
    lengths("a length with a space before its colon", "Content-Length : SHORT", refused);
    lengths("a length named in Connection", "Content-Length: LONG\r\nConnection: keep-alive, Content-Length", refused);
    lengths("a length, expected", "Content-Length: LONG\r\nExpect: 100-continue", &[100, 400]);
    lengths("a length, with an unknown expectation", "Content-Length: LONG\r\nExpect: y 100-continue", refused);
    lengths("an upgrade", "Content-Length: LONG\r\nConnection: Upgrade\r\nUpgrade: websocket", refused);
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA";
    lengths("an upgrade to HTTP/2", &format!("Content-Length: LONG\r\n{h2c}"), refused);
    lengths("behind the end of the connection", "Content-Length: SHORT\r\nConnection: close", &[200]);

    // Chunks: SIZE is that of REPORT, SIZE OF HIDDEN that of HIDDEN.
    let mut chunks = |name: &str, text: &str, answers| {
        let text = text.replace("SIZE OF HIDDEN", &format!("{:x}", hidden(name).len()));
        let text = text.replace("SIZE", &format!("{:x}", report(name).len()));
        let body = text.replace("REPORT", &report(name)).replace("HIDDEN", &hidden(name));
        add(name, post("Transfer-Encoding: chunked", &body), answers);
    };
    chunks("chunks", "SIZE\r\nREPORT\r\n0\r\n\r\n", &[200]);
    chunks("an extension", "SIZE;a=b;c=\"d\"\r\nREPORT\r\n0\r\n\r\n", &[200]);
    let quoted = "SIZE;a=\"\r\nREPORT\r\n0\r\n\r\nHIDDEN\"\r\n0\r\n\r\n";
    chunks("a line break in an extension", quoted, &[200, 200, 400]); // it ends the extension, quoted or not
    chunks("a bare LF in an extension", "SIZE;\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    let hiding = "SIZE;\nREPORT\r\nSIZE OF HIDDEN\r\nHIDDEN\r\n0\r\n\r\n";
    chunks("a bare LF in an extension, more chunks", hiding, refused);
    chunks("a bare LF behind a size", "SIZE\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a bare CR behind a size", "SIZE\rREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a bare LF behind a chunk", "SIZE\r\nREPORT\n0\r\n\r\nHIDDEN", refused);
    chunks("a bare CR behind a chunk", "SIZE\r\nREPORT\r0\r\n\r\nHIDDEN", refused);
    chunks("a chunk that is longer than its size", "2\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a size that overflows", "100000000000000SIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a size in the notation of C", "0xSIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a size with a sign", "+SIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a negative size", "-SIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a negative zero", "SIZE\r\nREPORT\r\n-0\r\n\r\nHIDDEN", refused);
    chunks("an underscore in a size", "0_SIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a NUL behind a size", "SIZE\0\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a space before a size", " SIZE\r\nREPORT\r\n0\r\n\r\nHIDDEN", refused);
    chunks("a space behind a size", "SIZE \r\nREPORT\r\n0 \r\n\r\nHIDDEN", &[200, 200]);
    chunks("zeros before a size", "0000SIZE\r\nREPORT\r\n0000\r\n\r\nHIDDEN", &[200, 200]);
    chunks("no size", "SIZE\r\nREPORT\r\n\r\n\r\nHIDDEN", refused);
    chunks("a last chunk without an empty line", "SIZE\r\nREPORT\r\n0\r\nHIDDEN", refused);
    chunks("a last chunk that does not end", "SIZE\r\nREPORT\r\n0\r\n", &[408]);
    let trailers = "SIZE\r\nREPORT\r\n0\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\nHIDDEN";
    chunks("trailers that speak of lengths", trailers, &[200, 200]);
    chunks("a folded trailer", "SIZE\r\nREPORT\r\n0\r\nX: y\r\n z\r\n\r\nHIDDEN", refused);

    // Lines: whoever ends them elsewhere sees other headers, or another body.
    let mut line = |name: &str, first: &str, headers: &str, answers| {
        let (first, length) = (first.replace("TARGET", "/api/v1/reports"), report(name).len());
        add(name, format!("{first}\r\n{headers}Content-Length: {length}\r\n\r\n{}", report(name)), answers);
    };
    let first = "POST TARGET HTTP/1.1";
    let host = "Host: test\r\n";
    line("nothing odd", first, host, &[200]);
    line("empty lines before", &format!("\r\n\r\n{first}"), host, &[200]);
    line("a space before the first header", &format!("{first}\r\n X: y"), host, refused);
    line("a folded header", first, "Host: test\r\nX: y\r\n z\r\n", refused);
    line("a space before a colon", first, "Host: test\r\nX : y\r\n", refused);
    line("a NUL in a value", first, "Host: test\r\nX: \0\r\n", refused);
    line("a NUL in a name", first, "Host: test\r\nX\0: y\r\n", refused);
    line("a bare CR in a value", first, "Host: test\r\nX: y\rz\r\n", refused);
    line("two spaces before the target", "POST  TARGET HTTP/1.1", host, refused);
    line("two spaces behind the target", "POST TARGET  HTTP/1.1", host, refused);
    line("a tab in the request line", "POST\tTARGET HTTP/1.1", host, refused);
    line("a space behind the version", "POST TARGET HTTP/1.1 ", host, refused);
    line("no version", "POST TARGET", host, refused);
    line("another version", "POST TARGET HTTP/1.2", host, refused);
    line("HTTP/2 without its preface", "POST TARGET HTTP/2.0", host, refused);
    line("an absolute target and another host", "POST http://other/api/v1/reports HTTP/1.1", host, &[200]);
    // Who is asked makes no difference here, so that hyper's leave with hosts does no harm.
    line("two hosts", first, "Host: test\r\nHost: other\r\n", &[200]);
    line("no host", first, "", &[200]);
    line("a host that is none", first, "Host: a b/c\r\n", &[200]);
    let name = "bare LF as each line end";
    let head = post(&format!("Content-Length: {}", report(name).len()), "").replace("\r\n", "\n");
    add(name, head + &report(name), &[200]);

    // What is refused before its body is read, or has no use for one.
    let mut unread = |name: &str, first: &str, headers: &str, answers| {
        let within = hidden(name);
        let length = within.len();
        add(name, format!("{first}\r\nHost: test\r\n{headers}Content-Length: {length}\r\n\r\n{within}"), answers);
    };
    unread("a GET with a body", "GET /.well-known/healthcheck.json HTTP/1.1", "", &[200]);
    unread("another path", "POST /other HTTP/1.1", "", &[404]);
    unread("another method", "PUT /api/v1/reports HTTP/1.1", "", &[405]);
    let preflight = "Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n";
    unread("a preflight with a body", "OPTIONS /api/v1/reports HTTP/1.1", preflight, &[204]);
    unread("another type", "POST /api/v1/reports HTTP/1.1", "Content-Type: image/png\r\n", &[415]);
    unread("another encoding", "POST /api/v1/reports HTTP/1.1", "Content-Encoding: compress\r\n", &[415]);
    unread("CONNECT", "CONNECT /api/v1/reports HTTP/1.1", "", &[405]);
    tries
}

/// What came back.
#[derive(Debug)]
struct Said {
    statuses: Vec<u16>,
    /// How many reports were acknowledged.
    acknowledged: usize,
}

/// Sends it, and reads all answers until the connection is closed.
fn exchange(mut client: Client, bytes: &str) -> Said {
    client.send(bytes);
    let mut said = Said { statuses: Vec::new(), acknowledged: 0 };
    while let Ok(answer) = client.try_any_answer() {
        said.statuses.push(answer.status);
        said.acknowledged += usize::from(answer.body == OK);
    }
    said
}

/// How many reports of this try are stored, its own and the hidden one.
fn kept(stored: &[String], name: &str) -> usize {
    stored.iter().filter(|line| line.ends_with(&format!(":\"{name}\"}}"))).count()
}

#[test]
fn a_request_that_hides_another_is_refused_or_is_what_it_plainly_is() {
    let tries = tries();
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "2s"), ("HEADER_TIMEOUT", "2s"), ("BODY_TIMEOUT", "2s")]);
    // Side by side: each waits until the server closes its connection.
    let said = thread::scope(|scope| {
        let all: Vec<_> = tries.iter().map(|one| scope.spawn(|| exchange(server.connect(), &one.bytes))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    let stored = server.stop();
    let mut wrong = Vec::new();
    for (one, said) in tries.iter().zip(said) {
        if said.statuses != one.answers || kept(&stored, &one.name) != said.acknowledged {
            wrong.push(format!("{}: {said:?}, not {:?}; kept: {}", one.name, one.answers, kept(&stored, &one.name)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Nothing is kept that its sender got no 200 for, and nobody else gets an answer that is not his own.
fn nothing_gets_past(kind: Kind, changes: &[(&str, &str)]) {
    let server = Server::start(&[("HEADER_TIMEOUT", "500ms"), ("BODY_TIMEOUT", "500ms")]);
    let balancer = Balancer::start(kind, [server.address; 2], changes);
    let mut probes = 0;
    let mut all = Vec::new();
    for one in tries() {
        let said = exchange(balancer.connect(), &one.bytes);
        println!("{:50} {:?}", one.name, said.statuses);
        // One that nobody waited for would come to whoever is next on that connection to the collector.
        for _ in 0..2 {
            let health = balancer.connect().ask_any(ASK_HEALTH);
            assert!(health.status == 200 && health.body.contains("uptime"), "after {}: {health:?}", one.name);
            let answer = balancer.connect().ask_any(request(format!("{{\"probe\":{probes}}}").as_bytes()));
            assert!(answer.status == 200 && answer.body == OK, "after {}: {answer:?}", one.name);
            probes += 1;
        }
        all.push((one.name, said));
    }
    drop(balancer);
    let stored = server.stop();
    all.retain(|(name, said)| kept(&stored, name) != said.acknowledged);
    assert!(all.is_empty(), "{all:#?}");
    let wanted: Vec<_> = (0..probes).map(|probe| format!("{{\"probe\":{probe}}}")).collect();
    let mut found: Vec<_> = stored.iter().filter(|line| line.contains("probe")).cloned().collect();
    found.sort_by_key(|line| (line.len(), line.clone()));
    assert_eq!(found, wanted);
}

// One thread and one collector, so that all share one connection; and what does not end is given up soon.

#[test]
#[ignore = "takes haproxy: make balancers"]
fn nothing_gets_past_haproxy() {
    let changes = [
        ("global\n    user", "global\n    nbthread 1\n    user"),
        ("    server collector-2 \"${COLLECTOR_2-collector-2:8080}\"\n", ""),
        ("timeout http-request 30s", "timeout http-request 500ms"),
        ("timeout http-keep-alive 60s", "timeout http-keep-alive 500ms"),
    ];
    nothing_gets_past(Kind::HaProxy, &changes);
}

#[test]
#[ignore = "takes nginx: make balancers"]
fn nothing_gets_past_nginx() {
    let changes = [
        ("worker_processes auto", "worker_processes 1"),
        ("client_header_timeout 10s", "client_header_timeout 500ms"),
        ("client_body_timeout 30s", "client_body_timeout 500ms"),
        ("keepalive_timeout 60s", "keepalive_timeout 500ms"),
    ];
    nothing_gets_past(Kind::Nginx, &changes);
}
