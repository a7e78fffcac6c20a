//! Admission: write keys, rate limits, and connections per address.

mod common;

use std::fs;
use std::net::SocketAddr;

use common::{Client, Server, wait_until};
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

const KEY: &str = "0123456789abcdef";
const OTHER_KEY: &str = "fedcba9876543210";

fn key_header(key: &str) -> String {
    format!("x-write-key: {key}\r\n")
}

/// The header of a trusted proxy (the test itself) that names the address of the client.
fn forwarded_for(address: &str) -> String {
    format!("x-forwarded-for: {address}\r\n")
}

const TRUST_LOCALHOST: (&str, &str) = ("TRUSTED_PROXIES", "127.0.0.0/8");

#[test]
fn reports_require_a_valid_write_key() {
    let server = Server::start(&[("WRITE_KEYS", &format!("{KEY},{OTHER_KEY}"))]);
    let answer = server.post("{\"n\":1}");
    answer.assert_problem(401, "key-missing");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    server.post_with(&key_header("0123456789abcdeF"), "{\"n\":2}").assert_problem(401, "key-wrong");

    server.post_with(&key_header(KEY), "{\"n\":3}").assert_ok();
    server.post_with(&format!("authorization: Bearer {OTHER_KEY}\r\n"), "{\"n\":4}").assert_ok();
    let head = format!("POST /api/v1/reports?key={KEY} HTTP/1.1\r\nhost: test\r\ncontent-length: 7\r\n\r\n");
    server.connect().ask(&head, b"{\"n\":5}").assert_ok();
    // Health checks need no key.
    assert_eq!(server.get("/readyz").status, 200);
    let mut stored = server.stop();
    stored.sort();
    assert_eq!(stored, ["{\"n\":3}", "{\"n\":4}", "{\"n\":5}"]);
}

#[test]
fn a_web_page_can_read_why_its_request_was_refused() {
    let server = Server::start(&[("WRITE_KEYS", KEY), ("RATE_LIMIT", "1/h")]);
    let origin = "origin: https://app.example\r\n";
    let preflight = "OPTIONS /api/v1/reports HTTP/1.1\r\nhost: test\r\norigin: https://app.example\r\n\
                     access-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n\r\n";
    // A preflight request needs no key and does not count towards the rate limit.
    for _ in 0..3 {
        assert_eq!(server.connect().ask(preflight, b"").status, 204);
    }
    let refused = server.post_with(origin, "{}");
    refused.assert_problem(401, "key-missing");
    let limited = server.post_with(&format!("{origin}{}", key_header(KEY)), "{}");
    limited.assert_problem(429, "rate-limited");
    for answer in [refused, limited] {
        assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example");
        assert_eq!(answer.headers["access-control-expose-headers"], "Retry-After");
    }
    assert!(server.stop().is_empty());
}

#[test]
fn a_refusal_does_not_wait_for_the_body() {
    let server = Server::start(&[("WRITE_KEYS", KEY), ("RATE_LIMIT", "1/h,burst=2")]);
    let head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\n";
    server.connect().ask(head, b"").assert_problem(401, "key-missing");
    server.post_with(&key_header(KEY), "{}").assert_ok();
    server.connect().ask(head, b"").assert_problem(429, "rate-limited");
    // If the body arrives anyway, it is not parsed as another request.
    let mut client = server.connect();
    let smuggled = common::request(b"{\"smuggled\":1}");
    let head = format!("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", smuggled.len());
    client.ask(&head, &smuggled).assert_problem(429, "rate-limited");
    client.post("{}").assert_problem(429, "rate-limited");
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn sighup_reloads_the_write_keys() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    fs::write(&file, format!("{KEY}\n")).unwrap();
    let server = Server::start(&[("WRITE_KEYS_FILE", file.to_str().unwrap())]);
    let status = |client: &mut Client, key| client.post_with(&key_header(key), "{}").status;
    // One connection for all requests: a reload also applies to open connections.
    let mut client = server.connect();
    assert_eq!((status(&mut client, KEY), status(&mut client, OTHER_KEY)), (200, 401));

    fs::write(&file, format!("# the new key\n{OTHER_KEY}\n")).unwrap();
    server.signal(Signal::HUP);
    server.wait_for_log("write keys and admin token reloaded", |line| line["fields"]["keys"] == 1);
    assert_eq!((status(&mut client, KEY), status(&mut client, OTHER_KEY)), (401, 200));

    // An empty file must neither allow nor block all requests: the current keys stay valid.
    fs::write(&file, "").unwrap();
    server.signal(Signal::HUP);
    server.wait_for_log("can't reload the write keys and the admin token; keeping the current ones", |_| true);
    assert_eq!((status(&mut client, KEY), status(&mut client, OTHER_KEY)), (401, 200));
    assert_eq!(server.stop(), ["{}"; 3]);
}

#[test]
fn each_client_has_its_own_rate_limit() {
    let server = Server::start(&[TRUST_LOCALHOST, ("RATE_LIMIT", "2/s,burst=5")]);
    let mut accepted = 0;
    let mut send = |address: &str| {
        let answer = server.post_with(&forwarded_for(address), "{}");
        match answer.status {
            200 => accepted += 1,
            _ => {
                answer.assert_problem(429, "rate-limited");
                assert_eq!(answer.headers["retry-after"], "1");
            }
        }
        answer.status
    };
    // The test sends faster than the server adds tokens.
    wait_until("the burst is used up", || (send("192.0.2.1") == 429).then_some(()));
    assert_eq!(send("192.0.2.2"), 200, "the limit of one client must not affect another client");
    wait_until("a token is available again", || (send("192.0.2.1") == 200).then_some(()));
    let stored = server.stop();
    assert_eq!(stored.len(), accepted);
}

#[test]
fn clients_in_one_ipv6_network_share_a_rate_limit() {
    let server = Server::start(&[TRUST_LOCALHOST, ("RATE_LIMIT", "1/h")]);
    server.post_with(&forwarded_for("2001:db8:1:2::1"), "{}").assert_ok();
    let limited = server.post_with(&forwarded_for("2001:db8:1:2:ffff::1"), "{}");
    limited.assert_problem(429, "rate-limited");
    let wait: u64 = limited.headers["retry-after"].parse().unwrap();
    assert!((3590..=3600).contains(&wait), "{wait}");
    server.post_with(&forwarded_for("2001:db8:1:3::1"), "{}").assert_ok();
}

#[test]
fn each_write_key_has_its_own_rate_limit() {
    let server =
        Server::start(&[TRUST_LOCALHOST, ("WRITE_KEYS", &format!("{KEY},{OTHER_KEY}")), ("KEY_RATE_LIMIT", "2/h")]);
    let send = |address, key| server.post_with(&(forwarded_for(address) + &key_header(key)), "{}");
    send("192.0.2.1", KEY).assert_ok();
    send("192.0.2.2", KEY).assert_ok();
    assert!(send("192.0.2.3", KEY).assert_problem(429, "rate-limited").contains("KEY_RATE_LIMIT"));
    send("192.0.2.3", OTHER_KEY).assert_ok();
}

#[test]
fn connections_are_limited_for_clients_but_not_for_trusted_proxies() {
    let server = Server::start(&[("MAX_CONNECTIONS_PER_ADDRESS", "3")]);
    let mut open: Vec<_> = (0..3).map(|_| server.connect()).collect();
    open.iter_mut().for_each(|client| client.post("{}").assert_ok());
    server.connect().assert_closed();
    open.pop();
    // The server needs a moment to notice the closed connection.
    wait_until("another connection is accepted", || {
        let mut client = server.connect();
        let result = client.try_send(common::request(b"{}")).and_then(|()| client.try_answer());
        result.is_ok_and(|answer| answer.status == 200).then_some(())
    });

    let server = Server::start(&[("MAX_CONNECTIONS_PER_ADDRESS", "3"), TRUST_LOCALHOST]);
    let mut open: Vec<_> = (0..10).map(|_| server.connect()).collect();
    open.iter_mut().for_each(|client| client.post("{}").assert_ok());
}

#[test]
fn ipv4_clients_on_a_dual_stack_socket_have_separate_connection_limits() {
    let server = Server::start(&[("HOST", "::"), ("MAX_CONNECTIONS_PER_ADDRESS", "1")]);
    let connect = |from: [u8; 4]| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&SocketAddr::from(([127, 0, 0, 1], server.address.port())).into()).unwrap();
        Client::from_stream(socket.into()).unwrap()
    };
    let mut open = [connect([127, 0, 0, 2]), connect([127, 0, 0, 3])];
    open.iter_mut().for_each(|client| client.post("{}").assert_ok());
    connect([127, 0, 0, 2]).assert_closed();
}

#[test]
fn connections_with_a_proxy_protocol_header_count_towards_the_limit_of_the_client() {
    let server = Server::start(&[("MAX_CONNECTIONS_PER_ADDRESS", "2"), TRUST_LOCALHOST, ("PROXY_PROTOCOL", "on")]);
    let connect = |address: &str| {
        let mut client = server.connect();
        client.send(format!("PROXY TCP4 {address} 127.0.0.1 1234 80\r\n"));
        client
    };
    let mut open = [connect("192.0.2.1"), connect("192.0.2.1"), connect("192.0.2.2")];
    open.iter_mut().for_each(|client| client.post("{}").assert_ok());
    connect("192.0.2.1").assert_closed();
}
