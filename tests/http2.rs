//! HTTP/2 on the same port, and clients that abuse it.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{PATIENCE, Server, wait_until};
use h2::client::SendRequest;
use http::{Method, Request, Response};
use rustix::process::Signal;
use serde_json::Value;
use tokio::runtime::Runtime;

/// A client that behaves.
struct Client {
    runtime: Runtime,
    requests: SendRequest<bytes::Bytes>,
}

fn request(method: Method, path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(format!("http://test{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn post() -> Request<()> {
    request(Method::POST, "/api/v1/reports", &[])
}

async fn body(response: Response<h2::RecvStream>) -> (u16, Value) {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        bytes.extend(piece.unwrap());
    }
    (head.status.as_u16(), serde_json::from_slice(&bytes).unwrap())
}

impl Client {
    fn connect(server: &Server) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let requests = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
            // Until the server has told how many requests it takes at a time: the least that there may be.
            let mut client = h2::client::Builder::new();
            let (requests, connection) = client.initial_max_send_streams(100).handshake(stream).await.unwrap();
            tokio::spawn(connection);
            requests
        });
        Self { runtime, requests }
    }

    /// Sends one request, with its body as fast as the server takes it.
    fn ask(&self, request: Request<()>, bytes: &[u8]) -> (u16, Value) {
        self.runtime.block_on(ask(self.requests.clone(), request, bytes.to_vec()))
    }
}

async fn ask(requests: SendRequest<bytes::Bytes>, request: Request<()>, bytes: Vec<u8>) -> (u16, Value) {
    let mut requests = requests.ready().await.unwrap();
    let (response, mut sending) = requests.send_request(request, bytes.is_empty()).unwrap();
    let mut left = bytes::Bytes::from(bytes);
    while !left.is_empty() {
        sending.reserve_capacity(left.len());
        // None when the server has heard enough.
        let Some(Ok(room)) = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await else { break };
        let piece = left.split_to(room.min(left.len()));
        if sending.send_data(piece, left.is_empty()).is_err() {
            break;
        }
    }
    body(response.await.unwrap()).await
}

#[test]
fn both_versions_are_served_on_the_one_port() {
    let server = Server::start(&[]);
    let client = Client::connect(&server);
    let (status, answer) = client.ask(post(), b"{\"n\":2}");
    assert_eq!((status, answer["accepted"].as_u64()), (200, Some(1)), "{answer}");
    server.post("{\"n\":1}").assert_ok();
    assert_eq!(client.ask(request(Method::GET, "/readyz", &[]), b"").0, 200);
    assert_eq!(client.ask(request(Method::GET, "/nowhere", &[]), b"").0, 404);
    let mut stored = server.stop();
    stored.sort();
    assert_eq!(stored, ["{\"n\":1}", "{\"n\":2}"]);
}

#[test]
fn many_requests_on_one_connection_are_kept_side_by_side() {
    let server = Server::start(&[]);
    let client = Client::connect(&server);
    let answers = client.runtime.block_on(async {
        let posts: Vec<_> = (0..500)
            .map(|n| tokio::spawn(ask(client.requests.clone(), post(), format!("{{\"n\":{n}}}").into_bytes())))
            .collect();
        let mut answers = Vec::new();
        for post in posts {
            answers.push(post.await.unwrap().0);
        }
        answers
    });
    assert_eq!(answers, [200; 500]);
    let mut stored = server.stop();
    assert_eq!(stored.len(), 500);
    stored.sort();
    stored.dedup();
    assert_eq!(stored.len(), 500);
}

#[test]
fn a_long_body_is_taken_and_one_that_is_too_long_leaves_the_connection_as_it_was() {
    let server = Server::start(&[("MAX_BODY_BYTES", "300000")]);
    let client = Client::connect(&server);
    // Several times as long as the window.
    let long = format!("{{\"pad\":\"{}\"}}", "x".repeat(299_000));
    assert_eq!(client.ask(post(), long.as_bytes()).0, 200);
    // Many of them: what is not read must not use up the connection's window.
    for _ in 0..20 {
        let (status, answer) = client.ask(post(), &vec![b' '; 1_000_000]);
        assert_eq!((status, &answer["type"]), (413, &Value::from("tag:netwatch-server,2026:too-large")));
        let announced = request(Method::POST, "/api/v1/reports", &[("content-length", "1000000")]);
        assert_eq!(client.ask(announced, &vec![b' '; 1_000_000]).0, 413);
    }
    assert_eq!(client.ask(post(), b"{}").0, 200);
    let mut stored = server.stop();
    stored.sort();
    assert_eq!(stored, [long, "{}".to_owned()]);
}

#[test]
fn a_body_that_does_not_come_in_time_is_a_408_and_the_other_requests_go_on() {
    let server = Server::start(&[("BODY_TIMEOUT", "2s"), ("KEEP_ALIVE_TIMEOUT", "1h")]);
    let client = Client::connect(&server);
    let late = client.runtime.block_on(async {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (response, mut sending) = requests.send_request(post(), false).unwrap();
        sending.send_data("{\"late\":".into(), false).unwrap();
        for _ in 0..10 {
            assert_eq!(ask(client.requests.clone(), post(), b"{}".to_vec()).await.0, 200);
        }
        body(response.await.unwrap()).await
    });
    assert_eq!((late.0, &late.1["type"]), (408, &Value::from("tag:netwatch-server,2026:body-timeout")));
    assert_eq!(client.ask(post(), b"{}").0, 200);
    assert_eq!(server.stop(), ["{}"; 11]);
}

#[test]
fn what_a_stop_finds_open_is_finished() {
    let mut server = Server::start(&[]);
    let client = Client::connect(&server);
    let (status, _) = client.runtime.block_on(async {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (response, mut sending) = requests.send_request(post(), false).unwrap();
        sending.send_data("{\"open\":".into(), false).unwrap();
        // Once this is answered, the server has the other one, too.
        assert_eq!(ask(client.requests.clone(), post(), b"{}".to_vec()).await.0, 200);
        server.signal(Signal::TERM);
        server.wait_for_log("stopping", |_| true);
        wait_until("the port is closed", || TcpStream::connect(server.address).is_err().then_some(()));
        sending.send_data("1}".into(), true).unwrap();
        body(response.await.unwrap()).await
    });
    assert_eq!(status, 200);
    assert!(server.wait().success());
    let mut stored = server.stored();
    stored.sort();
    assert_eq!(stored, ["{\"open\":1}", "{}"]);
}

/// A client that writes what it likes, frame by frame (RFC 9113, 4.1).
struct Raw(TcpStream);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn number_at(&self, offset: usize) -> u32 {
        u32::from_be_bytes(self.payload[offset..offset + 4].try_into().unwrap())
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `POST /api/v1/reports`, as HPACK has it (RFC 7541, appendix A).
fn post_headers() -> Vec<u8> {
    let path = b"/api/v1/reports";
    [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 4], b"test"].concat()
}

impl Raw {
    /// Connects, and tells the server these settings of its own.
    fn connect(server: &Server, settings: &[u8]) -> Self {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, settings)).unwrap();
        Self(stream)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The next frame; `None` at the end of the connection, in good order or not.
    fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes(head[5..].try_into().unwrap()),
            payload,
        })
    }

    fn wait_for(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        let mut seen = Vec::new();
        while let Some(frame) = self.next() {
            if wanted(&frame) {
                return frame;
            }
            seen.push(frame);
        }
        panic!("no {what} in {seen:?}");
    }

    /// Waits for the end; returns why, as the server has said it.
    fn goes_away(&mut self) -> u32 {
        let mut error = None;
        while let Some(frame) = self.next() {
            if frame.kind == GOAWAY {
                error = Some(frame.number_at(4));
            }
        }
        error.expect("closed without a word")
    }
}

/// Whatever one client does, another is served.
fn assert_serves(server: &Server) {
    server.post("{}").assert_ok();
    assert_eq!(Client::connect(server).ask(post(), b"{}").0, 200);
}

#[test]
fn more_requests_at_a_time_than_were_offered_are_refused_one_by_one() {
    let server = Server::start(&[]);
    let mut client = Raw::connect(&server, &[]);
    let settings = client.wait_for("settings", |frame| frame.kind == SETTINGS && frame.flags != ACK);
    let offered = settings.payload.chunks(6).find(|setting| setting[..2] == [0, 3]).unwrap();
    let offered = u32::from_be_bytes(offered[2..].try_into().unwrap());
    assert_eq!(offered, 100);
    client.send(&frame(SETTINGS, ACK, 0, &[]));
    for n in 0..=offered {
        client.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &post_headers()));
    }
    let reset = client.wait_for("reset", |frame| frame.kind == RST_STREAM);
    assert_eq!((reset.stream, reset.number_at(0)), (2 * offered + 1, REFUSED_STREAM));
    // The others are as they were.
    client.send(&frame(DATA, END_STREAM, 1, b"{\"first\":1}"));
    assert_eq!(client.wait_for("answer", |frame| frame.kind == HEADERS).stream, 1);
    drop(client);
    assert_eq!(server.stop(), ["{\"first\":1}"]);
}

#[test]
fn requests_that_are_reset_at_once_end_the_connection() {
    let server = Server::start(&[]);
    let mut client = Raw::connect(&server, &[]);
    let reset = |n: u32| {
        let headers = frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &post_headers());
        [headers, frame(RST_STREAM, 0, 2 * n + 1, &CANCEL.to_be_bytes())].concat()
    };
    // The server is free to stop listening before it has all of them.
    let flood: Vec<u8> = (0..10_000).flat_map(reset).collect();
    let mut writer = client.0.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&flood).is_ok());
    assert_eq!(client.goes_away(), ENHANCE_YOUR_CALM);
    drop(client);
    writing.join().unwrap();
    assert_serves(&server);
    assert_eq!(server.stop(), ["{}"; 2]);
}

#[test]
fn a_header_without_an_end_and_one_that_is_too_long_are_cut_off() {
    let server = Server::start(&[]);
    // A name and a value of 100 bytes each, without an entry in the table, again and again.
    let field = [&[0x00, 100][..], &[b'a'; 100], &[100], &[b'b'; 100]].concat();
    let mut client = Raw::connect(&server, &[]);
    client.send(&frame(HEADERS, 0, 1, &post_headers()));
    let mut writer = client.0.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let more = frame(CONTINUATION, 0, 1, &field.repeat(50));
        // Far more than a header may have; it ends when the server has closed the connection.
        (0..100_000).take_while(|_| writer.write_all(&more).is_ok()).count()
    });
    client.goes_away();
    drop(client);
    assert!(writing.join().unwrap() < 100_000);

    let client = Client::connect(&server);
    let long = "x".repeat(20_000);
    let request = request(Method::POST, "/api/v1/reports", &[("x-long", &long)]);
    let status = client.runtime.block_on(async {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (response, _) = requests.send_request(request, true).unwrap();
        response.await.map(|response| response.status().as_u16())
    });
    assert_eq!(status.unwrap(), 431);
    assert_eq!(client.ask(post(), b"{}").0, 200, "the connection goes on");
    assert_serves(&server);
}

#[test]
fn pings_and_settings_without_end_keep_nobody_from_being_served() {
    let server = Server::start(&[]);
    let flood = [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])].concat().repeat(1000);
    let client = Raw::connect(&server, &[]);
    let mut writer = client.0.try_clone().unwrap();
    // The answers are never read. Then the server reads no more either, and does not pile them up.
    writer.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let sent = (0..100_000).take_while(|_| writer.write_all(&flood).is_ok()).count();
    assert!(sent < 100_000, "the server holds all answers to {sent} floods");
    assert_serves(&server);
}

#[test]
fn an_idle_connection_is_told_so_before_it_is_closed() {
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "1s"), ("BODY_TIMEOUT", "1h")]);
    // Before its first request, and after one; the time does not run while there is one.
    assert_eq!(Raw::connect(&server, &[]).goes_away(), NO_ERROR);
    let mut client = Raw::connect(&server, &[]);
    client.send(&frame(HEADERS, END_HEADERS, 1, &post_headers()));
    std::thread::sleep(Duration::from_millis(2000)); // what the test is about, not a wait
    client.send(&frame(DATA, END_STREAM, 1, b"{}"));
    assert_eq!(client.wait_for("answer", |frame| frame.kind == HEADERS).stream, 1);
    assert_eq!(client.goes_away(), NO_ERROR);
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn a_client_that_takes_no_answers_is_cut_off() {
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "1s")]);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: no byte of a body may be sent to it.
    let mut client = Raw::connect(&server, &[0, 4, 0, 0, 0, 0]);
    client.send(&frame(HEADERS, END_HEADERS, 1, &post_headers()));
    client.send(&frame(DATA, END_STREAM, 1, b"{}"));
    client.goes_away();
    assert_serves(&server);
}

#[test]
fn as_many_requests_as_connections_are_answered_at_a_time() {
    let server = Server::start(&[("MAX_CONNECTIONS", "10")]);
    let client = Client::connect(&server);
    let statuses = client.runtime.block_on(async {
        let mut answers = tokio::task::JoinSet::new();
        let mut open = Vec::new();
        for _ in 0..11 {
            let mut requests = client.requests.clone().ready().await.unwrap();
            let (response, sending) = requests.send_request(post(), false).unwrap();
            open.push(sending);
            answers.spawn(async move { response.await.unwrap().status().as_u16() });
        }
        // Without their bodies, all but one wait.
        let mut statuses = vec![answers.join_next().await.unwrap().unwrap()];
        // That the server is well is told all the same.
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (health, _) = requests.send_request(request(Method::GET, "/livez", &[]), true).unwrap();
        assert_eq!(health.await.unwrap().status(), 200);
        for sending in &mut open {
            // The one that was refused takes none.
            drop(sending.send_data("{}".into(), true));
        }
        while let Some(status) = answers.join_next().await {
            statuses.push(status.unwrap());
        }
        statuses
    });
    assert_eq!(statuses, [&[503][..], &[200; 10]].concat());
    assert_eq!(server.stop(), ["{}"; 10]);
}

#[test]
fn answers_that_are_not_taken_keep_their_places_and_asking_on_keeps_no_connection() {
    let server = Server::start(&[("MAX_CONNECTIONS", "3"), ("KEEP_ALIVE_TIMEOUT", "1s")]);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: no byte of a body may be sent to it.
    let mut client = Raw::connect(&server, &[0, 4, 0, 0, 0, 0]);
    let get = |n: u32, method: u8| {
        let path = b"/livez";
        let headers = [&[method, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 4], b"test"].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &headers)
    };
    (0..3).for_each(|n| client.send(&get(n, 0x82)));
    (0..3).for_each(|_| drop(client.wait_for("answer", |frame| frame.kind == HEADERS)));
    // Held by the answers. What there is no place for has no body to be held.
    client.send(&frame(HEADERS, END_HEADERS, 7, &post_headers()));
    let refused = client.wait_for("answer", |frame| frame.kind == HEADERS);
    assert_eq!((refused.stream, refused.flags & END_STREAM), (7, END_STREAM));
    // Then again and again something that has no answer to take.
    let mut writer = client.0.try_clone().unwrap();
    let asking = std::thread::spawn(move || {
        let head = [&[0x02, 4][..], b"HEAD", &[0x86, 0x04, 6], b"/livez", &[0x01, 4], b"test"].concat();
        let head = |n: u32| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &head);
        let pause = || std::thread::sleep(Duration::from_millis(50)); // the pace of this client, not a wait
        (4..4_000).take_while(|n| writer.write_all(&head(*n)).inspect(|()| pause()).is_ok()).count()
    });
    client.goes_away();
    drop(client);
    assert!(asking.join().unwrap() < 3_000);
    assert_serves(&server);
}

#[test]
fn a_client_that_says_nothing_does_not_hold_up_a_stop() {
    let server = Server::start(&[("SHUTDOWN_TIMEOUT", "1h")]);
    // It does not answer the ping that comes with the first word of the end.
    let mut silent = Raw::connect(&server, &[]);
    silent.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &post_headers()));
    silent.wait_for("answer", |frame| frame.kind == HEADERS);
    assert!(server.stop().is_empty());
    assert_eq!(silent.goes_away(), NO_ERROR);
}

#[test]
fn a_method_that_only_begins_like_the_preface_is_one() {
    let server = Server::start(&[]);
    let head = "PRINT /api/v1/reports HTTP/1.1\r\nhost: test\r\n\r\n";
    server.connect().ask(head, b"").assert_problem(405, "method-not-allowed");
}

#[test]
fn the_log_for_debugging_shows_no_frames_and_no_keys() {
    let mut server = Server::start(&[("DEBUG", "true")]);
    let mut client = Raw::connect(&server, &[]);
    let path = b"/api/v1/reports?key=0123456789abcdef\x01";
    let headers = [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 4], b"test"].concat();
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &headers));
    client.send(&frame(PING, 0, 0, &[7; 8]));
    client.wait_for("pong", |frame| frame.kind == PING && frame.flags == ACK);
    server.post("[]").assert_problem(400, "empty");
    server.signal(Signal::TERM);
    server.wait();
    let log = server.log();
    assert!(log.contains("refused"), "it is a log for debugging: {log}");
    assert!(!log.contains("key=") && !log.to_lowercase().contains("frame"), "{log}");
}
