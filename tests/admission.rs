//! Who may send reports, and how often.

mod common;

use std::fs;
use std::net::SocketAddr;

use common::{Client, Server, wait_until};
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

const KEY: &str = "0123456789abcdef";
const OTHER: &str = "fedcba9876543210";

fn with_key(key: &str) -> String {
    format!("x-write-key: {key}\r\n")
}

/// From a client that the proxy, which is this test, has seen at this address.
fn seen_at(address: &str) -> String {
    format!("x-forwarded-for: {address}\r\n")
}

const BEHIND_PROXY: (&str, &str) = ("TRUSTED_PROXIES", "127.0.0.0/8");

#[test]
fn only_who_knows_a_key_may_send_reports() {
    let server = Server::start(&[("WRITE_KEYS", &format!("{KEY},{OTHER}"))]);
    let answer = server.post("{\"n\":1}");
    answer.assert_problem(401, "key-missing");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    server.post_with(&with_key("0123456789abcdeF"), "{\"n\":2}").assert_problem(401, "key-wrong");

    server.post_with(&with_key(KEY), "{\"n\":3}").assert_ok();
    server.post_with(&format!("authorization: Bearer {OTHER}\r\n"), "{\"n\":4}").assert_ok();
    let head = format!("POST /api/v1/reports?key={KEY} HTTP/1.1\r\nhost: test\r\ncontent-length: 7\r\n\r\n");
    server.connect().ask(&head, b"{\"n\":5}").assert_ok();
    // Whoever asks for the server's health has none.
    assert_eq!(server.get("/readyz").status, 200);
    let mut stored = server.stop();
    stored.sort();
    assert_eq!(stored, ["{\"n\":3}", "{\"n\":4}", "{\"n\":5}"]);
}

#[test]
fn a_page_is_told_why_it_was_turned_away() {
    let server = Server::start(&[("WRITE_KEYS", KEY), ("RATE_LIMIT", "1/h")]);
    let origin = "origin: https://app.example\r\n";
    let preflight = "OPTIONS /api/v1/reports HTTP/1.1\r\nhost: test\r\norigin: https://app.example\r\n\
                     access-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n\r\n";
    // A preflight brings no key, and takes no token.
    for _ in 0..3 {
        assert_eq!(server.connect().ask(preflight, b"").status, 204);
    }
    let refused = server.post_with(origin, "{}");
    refused.assert_problem(401, "key-missing");
    let limited = server.post_with(&format!("{origin}{}", with_key(KEY)), "{}");
    limited.assert_problem(429, "rate-limited");
    for answer in [refused, limited] {
        assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example");
        assert_eq!(answer.headers["access-control-expose-headers"], "Retry-After");
    }
    assert!(server.stop().is_empty());
}

#[test]
fn the_answer_does_not_wait_for_the_body() {
    let server = Server::start(&[("WRITE_KEYS", KEY), ("RATE_LIMIT", "1/h,burst=2")]);
    let head = "POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\n";
    server.connect().ask(head, b"").assert_problem(401, "key-missing");
    server.post_with(&with_key(KEY), "{}").assert_ok();
    server.connect().ask(head, b"").assert_problem(429, "rate-limited");
    // Nor is it taken for another request if it comes after all.
    let mut client = server.connect();
    let smuggled = common::request(b"{\"smuggled\":1}");
    let head = format!("POST /api/v1/reports HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", smuggled.len());
    client.ask(&head, &smuggled).assert_problem(429, "rate-limited");
    client.post("{}").assert_problem(429, "rate-limited");
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn keys_are_read_again_with_a_sighup() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    fs::write(&file, format!("{KEY}\n")).unwrap();
    let server = Server::start(&[("WRITE_KEYS_FILE", file.to_str().unwrap())]);
    let sends = |client: &mut Client, key| client.post_with(&with_key(key), "{}").status;
    // Over one connection: the keys are not those of when it was opened.
    let mut client = server.connect();
    assert_eq!((sends(&mut client, KEY), sends(&mut client, OTHER)), (200, 401));

    fs::write(&file, format!("# the new one\n{OTHER}\n")).unwrap();
    server.signal(Signal::HUP);
    server.wait_for_log("the write keys are read again", |line| line["fields"]["keys"] == 1);
    assert_eq!((sends(&mut client, KEY), sends(&mut client, OTHER)), (401, 200));

    // A file that is of no use does not open the door, nor close it.
    fs::write(&file, "").unwrap();
    server.signal(Signal::HUP);
    server.wait_for_log("can't read the write keys again; those of before hold", |_| true);
    assert_eq!((sends(&mut client, KEY), sends(&mut client, OTHER)), (401, 200));
    assert_eq!(server.stop(), ["{}"; 3]);
}

#[test]
fn each_client_may_send_at_the_rate_and_no_faster() {
    let server = Server::start(&[BEHIND_PROXY, ("RATE_LIMIT", "2/s,burst=5")]);
    let mut kept = 0;
    let mut send = |address: &str| {
        let answer = server.post_with(&seen_at(address), "{}");
        match answer.status {
            200 => kept += 1,
            _ => {
                answer.assert_problem(429, "rate-limited");
                assert_eq!(answer.headers["retry-after"], "1");
            }
        }
        answer.status
    };
    // Faster than one goes back in.
    wait_until("the burst is used up", || (send("192.0.2.1") == 429).then_some(()));
    assert_eq!(send("192.0.2.2"), 200, "another client");
    wait_until("a token is back", || (send("192.0.2.1") == 200).then_some(()));
    let stored = server.stop();
    assert_eq!(stored.len(), kept);
}

#[test]
fn a_network_of_ipv6_is_one_client() {
    let server = Server::start(&[BEHIND_PROXY, ("RATE_LIMIT", "1/h")]);
    server.post_with(&seen_at("2001:db8:1:2::1"), "{}").assert_ok();
    let limited = server.post_with(&seen_at("2001:db8:1:2:ffff::1"), "{}");
    limited.assert_problem(429, "rate-limited");
    let wait: u64 = limited.headers["retry-after"].parse().unwrap();
    assert!((3590..=3600).contains(&wait), "{wait}");
    server.post_with(&seen_at("2001:db8:1:3::1"), "{}").assert_ok();
}

#[test]
fn a_key_has_a_rate_of_its_own() {
    let server = Server::start(&[BEHIND_PROXY, ("WRITE_KEYS", &format!("{KEY},{OTHER}")), ("KEY_RATE_LIMIT", "2/h")]);
    let send = |address, key| server.post_with(&(seen_at(address) + &with_key(key)), "{}");
    send("192.0.2.1", KEY).assert_ok();
    send("192.0.2.2", KEY).assert_ok();
    assert!(send("192.0.2.3", KEY).assert_problem(429, "rate-limited").contains("KEY_RATE_LIMIT"));
    send("192.0.2.3", OTHER).assert_ok();
}

#[test]
fn a_client_may_have_so_many_connections_and_a_proxy_any_number() {
    let server = Server::start(&[("MAX_CONNECTIONS_PER_ADDRESS", "3")]);
    let mut open: Vec<_> = (0..3).map(|_| server.connect()).collect();
    open.iter_mut().for_each(|client| client.post("{}").assert_ok());
    server.connect().assert_closed();
    open.pop();
    // As soon as the server has seen the end of it.
    wait_until("the place is free again", || {
        let mut client = server.connect();
        let sent = client.try_send(common::request(b"{}")).and_then(|()| client.try_answer());
        sent.is_ok_and(|answer| answer.status == 200).then_some(())
    });

    let server = Server::start(&[("MAX_CONNECTIONS_PER_ADDRESS", "3"), BEHIND_PROXY]);
    let mut open: Vec<_> = (0..10).map(|_| server.connect()).collect();
    open.iter_mut().for_each(|client| client.post("{}").assert_ok());
}

#[test]
fn clients_of_ipv4_are_told_apart_on_the_socket_for_both() {
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
fn connections_that_a_proxy_hands_on_are_those_of_its_clients() {
    let server = Server::start(&[("MAX_CONNECTIONS_PER_ADDRESS", "2"), BEHIND_PROXY, ("PROXY_PROTOCOL", "on")]);
    let connect = |address: &str| {
        let mut client = server.connect();
        client.send(format!("PROXY TCP4 {address} 127.0.0.1 1234 80\r\n"));
        client
    };
    let mut open = [connect("192.0.2.1"), connect("192.0.2.1"), connect("192.0.2.2")];
    open.iter_mut().for_each(|client| client.post("{}").assert_ok());
    connect("192.0.2.1").assert_closed();
}
