//! HTTP/2 on the same port, and hostile HTTP/2 clients.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{PATIENCE, Server, wait_until, wait_until_idle};
use h2::client::SendRequest;
use http::{Method, Request, Response};
use rustix::process::Signal;
use serde_json::Value;
use tokio::runtime::Runtime;

/// A well-behaved client.
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

/// Returns the status and the JSON body.
async fn read_answer(response: Response<h2::RecvStream>) -> (u16, Value) {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        bytes.extend(chunk.unwrap());
    }
    (head.status.as_u16(), serde_json::from_slice(&bytes).unwrap())
}

impl Client {
    fn connect(server: &Server) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let requests = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
            // Limit of concurrent streams until the SETTINGS of the server arrive. RFC 9113 recommends at least 100.
            let mut client = h2::client::Builder::new();
            let (requests, connection) = client.initial_max_send_streams(100).handshake(stream).await.unwrap();
            tokio::spawn(connection);
            requests
        });
        Self { runtime, requests }
    }

    /// Sends one request. The body follows as fast as flow control permits.
    fn ask(&self, request: Request<()>, bytes: &[u8]) -> (u16, Value) {
        self.runtime.block_on(ask(self.requests.clone(), request, bytes.to_vec()))
    }
}

async fn ask(requests: SendRequest<bytes::Bytes>, request: Request<()>, bytes: Vec<u8>) -> (u16, Value) {
    let mut requests = requests.ready().await.unwrap();
    let (response, mut sending) = requests.send_request(request, bytes.is_empty()).unwrap();
    let mut remaining = bytes::Bytes::from(bytes);
    while !remaining.is_empty() {
        sending.reserve_capacity(remaining.len());
        // There is no capacity if the server has ended the stream.
        let Some(Ok(capacity)) = std::future::poll_fn(|cx| sending.poll_capacity(cx)).await else { break };
        let chunk = remaining.split_to(capacity.min(remaining.len()));
        if sending.send_data(chunk, remaining.is_empty()).is_err() {
            break;
        }
    }
    read_answer(response.await.unwrap()).await
}

#[test]
fn http_1_and_http_2_are_served_on_the_same_port() {
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
fn concurrent_requests_on_one_connection_are_all_stored() {
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
fn a_long_body_is_stored_and_one_that_is_too_long_does_not_break_the_connection() {
    let server = Server::start(&[("MAX_BODY_BYTES", "300000")]);
    let client = Client::connect(&server);
    // Several times the flow-control window.
    let long = format!("{{\"pad\":\"{}\"}}", "x".repeat(299_000));
    assert_eq!(client.ask(post(), long.as_bytes()).0, 200);
    // Repeated, because unread body bytes must not use up the connection's flow-control window.
    for _ in 0..20 {
        let (status, answer) = client.ask(post(), &vec![b' '; 1_000_000]);
        assert_eq!((status, &answer["type"]), (413, &Value::from("tag:netwatch-server,2026:too-large")));
        let with_length = request(Method::POST, "/api/v1/reports", &[("content-length", "1000000")]);
        assert_eq!(client.ask(with_length, &vec![b' '; 1_000_000]).0, 413);
    }
    assert_eq!(client.ask(post(), b"{}").0, 200);
    let mut stored = server.stop();
    stored.sort();
    assert_eq!(stored, [long, "{}".to_owned()]);
}

#[test]
fn a_late_body_is_answered_408_and_other_requests_continue() {
    let server = Server::start(&[("BODY_TIMEOUT", "2s"), ("KEEP_ALIVE_TIMEOUT", "1h")]);
    let client = Client::connect(&server);
    let late = client.runtime.block_on(async {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (response, mut sending) = requests.send_request(post(), false).unwrap();
        sending.send_data("{\"late\":".into(), false).unwrap();
        for _ in 0..10 {
            assert_eq!(ask(client.requests.clone(), post(), b"{}".to_vec()).await.0, 200);
        }
        read_answer(response.await.unwrap()).await
    });
    assert_eq!((late.0, &late.1["type"]), (408, &Value::from("tag:netwatch-server,2026:body-timeout")));
    assert_eq!(client.ask(post(), b"{}").0, 200);
    assert_eq!(server.stop(), ["{}"; 11]);
}

#[test]
fn a_request_that_is_open_at_shutdown_is_finished() {
    let mut server = Server::start(&[]);
    let client = Client::connect(&server);
    let (status, _) = client.runtime.block_on(async {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (response, mut sending) = requests.send_request(post(), false).unwrap();
        sending.send_data("{\"open\":".into(), false).unwrap();
        // When this request is answered, the server has also received the open one.
        assert_eq!(ask(client.requests.clone(), post(), b"{}".to_vec()).await.0, 200);
        server.signal(Signal::TERM);
        server.wait_for_log("shutting down", |_| true);
        wait_until("the port is closed", || TcpStream::connect(server.address).is_err().then_some(()));
        sending.send_data("1}".into(), true).unwrap();
        read_answer(response.await.unwrap()).await
    });
    assert_eq!(status, 200);
    assert!(server.wait().success());
    let mut stored = server.stored();
    stored.sort();
    assert_eq!(stored, ["{\"open\":1}", "{}"]);
}

/// A client that writes arbitrary frames (RFC 9113, section 4.1).
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

/// The header fields of `POST /api/v1/reports` in HPACK (RFC 7541, appendix A).
fn post_headers() -> Vec<u8> {
    let path = b"/api/v1/reports";
    [&[0x83, 0x86, 0x04, path.len() as u8], &path[..], &[0x01, 4], b"test"].concat()
}

/// A request for `/livez`, as the stream with this index.
fn get(n: u32) -> Vec<u8> {
    let headers = [&[0x82, 0x86, 0x04, 6], &b"/livez"[..], &[0x01, 4], b"test"].concat();
    frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &headers)
}

impl Raw {
    /// Connects and sends `settings` as the payload of the client's SETTINGS frame.
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

    /// Returns the next frame, or `None` if the connection was closed or reset.
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

    /// Waits for SETTINGS, and returns SETTINGS_MAX_CONCURRENT_STREAMS.
    fn max_streams(&mut self) -> u32 {
        let settings = self.wait_for("settings", |frame| frame.kind == SETTINGS && frame.flags != ACK);
        let limit = settings.payload.chunks(6).find(|setting| setting[..2] == [0, 3]).unwrap();
        u32::from_be_bytes(limit[2..].try_into().unwrap())
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

    /// Reads until the connection ends, and returns the error code of the last GOAWAY frame.
    fn wait_for_goaway(&mut self) -> u32 {
        let mut error = None;
        while let Some(frame) = self.next() {
            if frame.kind == GOAWAY {
                error = Some(frame.number_at(4));
            }
        }
        error.expect("closed without a GOAWAY frame")
    }
}

/// Checks that the server still serves other clients, over HTTP/1 and HTTP/2.
fn assert_serves_others(server: &Server) {
    server.post("{}").assert_ok();
    assert_eq!(Client::connect(server).ask(post(), b"{}").0, 200);
}

#[test]
fn a_stream_beyond_the_advertised_limit_is_refused_and_the_others_continue() {
    let server = Server::start(&[]);
    let mut client = Raw::connect(&server, &[]);
    let max_streams = client.max_streams();
    assert_eq!(max_streams, 100);
    client.send(&frame(SETTINGS, ACK, 0, &[]));
    for n in 0..=max_streams {
        client.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &post_headers()));
    }
    let reset = client.wait_for("reset", |frame| frame.kind == RST_STREAM);
    assert_eq!((reset.stream, reset.number_at(0)), (2 * max_streams + 1, REFUSED_STREAM));
    // The other streams are not affected.
    client.send(&frame(DATA, END_STREAM, 1, b"{\"first\":1}"));
    assert_eq!(client.wait_for("answer", |frame| frame.kind == HEADERS).stream, 1);
    drop(client);
    assert_eq!(server.stop(), ["{\"first\":1}"]);
}

#[test]
fn a_rapid_reset_flood_closes_the_connection() {
    let server = Server::start(&[]);
    let mut client = Raw::connect(&server, &[]);
    let reset = |n: u32| {
        let headers = frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &post_headers());
        [headers, frame(RST_STREAM, 0, 2 * n + 1, &CANCEL.to_be_bytes())].concat()
    };
    // The write can fail: the server may close the connection before it has read the whole flood.
    let flood: Vec<u8> = (0..10_000).flat_map(reset).collect();
    let mut writer = client.0.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(&flood).is_ok());
    assert_eq!(client.wait_for_goaway(), ENHANCE_YOUR_CALM);
    drop(client);
    sender.join().unwrap();
    assert_serves_others(&server);
    assert_eq!(server.stop(), ["{}"; 2]);
}

#[test]
fn an_endless_header_closes_the_connection_and_a_long_one_is_answered_431() {
    let server = Server::start(&[]);
    // A header field that is not added to the HPACK table. Name and value have 100 bytes each.
    let field = [&[0x00, 100][..], &[b'a'; 100], &[100], &[b'b'; 100]].concat();
    let mut client = Raw::connect(&server, &[]);
    client.send(&frame(HEADERS, 0, 1, &post_headers()));
    let mut writer = client.0.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let more = frame(CONTINUATION, 0, 1, &field.repeat(50));
        // Far more than the header limit. Writing fails after the server has closed the connection.
        (0..100_000).take_while(|_| writer.write_all(&more).is_ok()).count()
    });
    client.wait_for_goaway();
    drop(client);
    assert!(sender.join().unwrap() < 100_000);

    let client = Client::connect(&server);
    let long = "x".repeat(20_000);
    let request = request(Method::POST, "/api/v1/reports", &[("x-long", &long)]);
    let status = client.runtime.block_on(async {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (response, _) = requests.send_request(request, true).unwrap();
        response.await.map(|response| response.status().as_u16())
    });
    assert_eq!(status.unwrap(), 431);
    assert_eq!(client.ask(post(), b"{}").0, 200, "the connection stays usable");
    assert_serves_others(&server);
}

#[test]
fn many_header_fields_are_answered_431_and_the_connection_stays_usable() {
    let server = Server::start(&[]);
    let mut client = Raw::connect(&server, &[]);
    let fields = |count: usize| [post_headers(), b"\x00\x01a\x01b".repeat(count)].concat();
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(101)));
    let refused = client.wait_for("answer", |frame| frame.kind == HEADERS);
    client.send(&frame(HEADERS, END_HEADERS, 3, &fields(100)));
    client.send(&frame(DATA, END_STREAM, 3, b"{}"));
    let answer = client.wait_for("answer", |frame| frame.kind == HEADERS);
    assert_eq!((refused.stream, refused.flags & END_STREAM), (1, END_STREAM));
    assert_eq!((answer.stream, answer.flags & END_STREAM), (3, 0));
    // The index of `:status 200` in the HPACK table. 431 is not in the table.
    assert!(answer.payload[0] == 0x88 && refused.payload[0] != 0x88, "{refused:?} {answer:?}");
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn a_flood_of_pings_and_settings_does_not_affect_other_clients() {
    let server = Server::start(&[]);
    let flood = [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])].concat().repeat(1000);
    let client = Raw::connect(&server, &[]);
    let mut writer = client.0.try_clone().unwrap();
    // The client reads no answers. The server must stop reading frames, and must not buffer answers without a limit.
    writer.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let sent = (0..100_000).take_while(|_| writer.write_all(&flood).is_ok()).count();
    assert!(sent < 100_000, "the server buffered the answers to {sent} floods");
    assert_serves_others(&server);
}

#[test]
fn an_idle_connection_gets_a_goaway_frame_before_it_is_closed() {
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "1s"), ("BODY_TIMEOUT", "1h")]);
    // Idle before the first request, then idle after a request. An open request does not count as idle time.
    assert_eq!(Raw::connect(&server, &[]).wait_for_goaway(), NO_ERROR);
    let mut client = Raw::connect(&server, &[]);
    client.send(&frame(HEADERS, END_HEADERS, 1, &post_headers()));
    std::thread::sleep(Duration::from_millis(2000)); // an open request, for longer than the timeout
    client.send(&frame(DATA, END_STREAM, 1, b"{}"));
    assert_eq!(client.wait_for("answer", |frame| frame.kind == HEADERS).stream, 1);
    assert_eq!(client.wait_for_goaway(), NO_ERROR);
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn a_client_that_accepts_no_answer_body_is_disconnected() {
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "1s")]);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: the server may not send any byte of a body.
    let mut client = Raw::connect(&server, &[0, 4, 0, 0, 0, 0]);
    client.send(&frame(HEADERS, END_HEADERS, 1, &post_headers()));
    client.send(&frame(DATA, END_STREAM, 1, b"{}"));
    client.wait_for_goaway();
    assert_serves_others(&server);
}

#[test]
fn a_connection_that_finds_no_stream_gets_those_of_the_heaviest_connection() {
    // 100 streams for all connections.
    let server = Server::start(&[("MAX_CONNECTIONS", "110")]);
    let mut clients: Vec<_> = (0..45)
        .map(|_| {
            let mut client = Raw::connect(&server, &[]);
            // Arrives when the connection has its streams.
            let max_streams = client.max_streams();
            (client, max_streams)
        })
        .collect();
    let limits: Vec<_> = clients.iter().map(|(_, max_streams)| *max_streams).collect();
    assert!(limits[0] > 1 && limits.iter().sum::<u32>() > 100, "{limits:?}");
    let (mut first, _) = clients.remove(0);
    assert_eq!(first.wait_for_goaway(), NO_ERROR);
    let (last, _) = clients.last_mut().unwrap();
    last.send(&frame(HEADERS, END_HEADERS, 1, &post_headers()));
    last.send(&frame(DATA, END_STREAM, 1, b"{}"));
    assert_eq!(last.wait_for("answer", |frame| frame.kind == HEADERS).stream, 1);
    assert_serves_others(&server);
}

#[test]
fn many_connections_with_many_requests_use_bounded_memory() {
    let mut server = Server::start(&[("BODY_TIMEOUT", "1h"), ("HEADER_TIMEOUT", "1h")]);
    let requests: Vec<u8> = (0..100).flat_map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &post_headers())).collect();
    let mut clients: Vec<_> = (0..1500).map(|_| Raw::connect(&server, &[])).collect();
    // All requests arrive at once.
    server.signal(Signal::STOP);
    clients.iter_mut().for_each(|client| client.send(&requests));
    server.signal(Signal::CONT);
    wait_until_idle(&mut server);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
    let peak_mib = peak.parse::<u32>().unwrap() / 1024;
    println!("peak {peak_mib} MiB");
    assert!(peak_mib < 150, "{peak_mib} MiB");
    server.post("{}").assert_ok();
}

#[test]
fn unsent_answers_hold_their_streams_and_more_requests_do_not_keep_the_connection_open() {
    let server = Server::start(&[("MAX_CONNECTIONS", "100"), ("KEEP_ALIVE_TIMEOUT", "1s")]);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: the server may not send any byte of a body.
    let mut client = Raw::connect(&server, &[0, 4, 0, 0, 0, 0]);
    let max_streams = client.max_streams();
    (0..max_streams - 1).for_each(|n| client.send(&get(n)));
    (0..max_streams - 1).for_each(|_| drop(client.wait_for("answer", |frame| frame.kind == HEADERS)));
    // One stream is left.
    let more = max_streams..max_streams + 2;
    more.clone().for_each(|n| client.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &post_headers())));
    let reset = client.wait_for("reset", |frame| frame.kind == RST_STREAM);
    assert_eq!((reset.stream, reset.number_at(0)), (2 * more.end - 1, REFUSED_STREAM));
    client.send(&frame(RST_STREAM, 0, 2 * more.start + 1, &CANCEL.to_be_bytes()));
    // The client then sends HEAD requests. Their answers have no body, so each is sent completely.
    let mut writer = client.0.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let head = [&[0x02, 4][..], b"HEAD", &[0x86, 0x04, 6], b"/livez", &[0x01, 4], b"test"].concat();
        let head = |n: u32| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &head);
        let pause = || std::thread::sleep(Duration::from_millis(50)); // sets the pace of this client
        (more.end..4_000).take_while(|n| writer.write_all(&head(*n)).inspect(|()| pause()).is_ok()).count()
    });
    client.wait_for_goaway();
    drop(client);
    assert!(sender.join().unwrap() < 3_000);
    assert_serves_others(&server);
}

#[test]
fn overlapping_slow_bodies_do_not_keep_a_connection_open_whose_client_reads_no_answers() {
    let server = Server::start(&[("KEEP_ALIVE_TIMEOUT", "1s"), ("BODY_TIMEOUT", "1s")]);
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: the server may not send any byte of a body.
    let mut client = Raw::connect(&server, &[0, 4, 0, 0, 0, 0]);
    client.send(&get(0));
    let mut writer = client.0.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let post = |n: u32| frame(HEADERS, END_HEADERS, 2 * n + 1, &post_headers());
        let pause = || std::thread::sleep(Duration::from_millis(300)); // sets the pace of this client
        (1..95).take_while(|n| writer.write_all(&post(*n)).inspect(|()| pause()).is_ok()).count()
    });
    assert_eq!(client.wait_for_goaway(), NO_ERROR);
    drop(client);
    // All of them would take 28 seconds.
    let sent = sender.join().unwrap();
    assert!(sent < 50, "{sent} requests");
}

#[test]
fn a_silent_client_does_not_delay_the_shutdown() {
    let server = Server::start(&[("SHUTDOWN_TIMEOUT", "1h")]);
    // The client does not answer the PING that the server sends with its first GOAWAY frame.
    let mut silent = Raw::connect(&server, &[]);
    silent.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &post_headers()));
    silent.wait_for("answer", |frame| frame.kind == HEADERS);
    assert!(server.stop().is_empty());
    assert_eq!(silent.wait_for_goaway(), NO_ERROR);
}

#[test]
fn a_method_that_starts_like_the_http_2_preface_is_read_as_http_1() {
    let server = Server::start(&[]);
    let head = "PRINT /api/v1/reports HTTP/1.1\r\nhost: test\r\n\r\n";
    server.connect().ask(head, b"").assert_problem(405, "method-not-allowed");
}

#[test]
fn the_debug_log_contains_no_frames_and_no_keys() {
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
    assert!(log.contains("refused"), "DEBUG does not log the refusal: {log}");
    assert!(!log.contains("key=") && !log.to_lowercase().contains("frame"), "{log}");
}
