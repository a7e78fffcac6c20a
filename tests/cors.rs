//! CORS: web pages of allowed origins can send reports and read the answers.

mod common;

use common::{Answer, Client, Server};

/// Headers that let a page of another origin read an answer.
const CORS_HEADERS: [&str; 4] = [
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-expose-headers",
    "cross-origin-resource-policy",
];

fn preflight(client: &mut Client, headers: &str) -> Answer {
    let method = "access-control-request-method: POST";
    client.ask(&format!("OPTIONS /api/v1/reports HTTP/1.1\r\nhost: test\r\n{method}\r\n{headers}\r\n"), b"")
}

fn assert_readable_from(origin: &str, answer: &Answer) {
    for (name, value) in CORS_HEADERS.into_iter().zip([origin, "true", "Retry-After", "cross-origin"]) {
        assert_eq!(answer.headers.get(name).map(String::as_str), Some(value), "{name}: {answer:?}");
    }
    assert!(answer.headers["vary"].contains("Origin"), "{answer:?}");
}

fn assert_not_readable(answer: &Answer) {
    let names =
        answer.headers.keys().filter(|name| name.starts_with("access-control") || CORS_HEADERS.contains(&&***name));
    assert_eq!(names.collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn a_page_can_read_every_answer_including_errors() {
    let server = Server::start(&[("MAX_BODY_BYTES", "100")]);
    let mut client = server.connect();
    let origin = "https://app.example.com";
    let from = format!("origin: {origin}\r\n");
    for (headers, body, status) in [
        ("", "{}", 200),
        ("content-type: text/plain;charset=UTF-8\r\n", "{}", 200),
        ("", "hello", 400),
        ("content-type: multipart/form-data\r\n", "{}", 415),
        ("", &"x".repeat(101), 413),
    ] {
        let answer = client.post_with(&format!("{from}{headers}"), body);
        assert_eq!(answer.status, status, "{answer:?}");
        assert_readable_from(origin, &answer);
    }
    let get = client.ask(&format!("PUT /api/v1/reports HTTP/1.1\r\nhost: test\r\n{from}\r\n"), b"");
    get.assert_problem(405, "method-not-allowed");
    assert_readable_from(origin, &get);
    assert_readable_from("null", &client.post_with("origin: null\r\n", "{}"));
    assert_eq!(server.stop(), ["{}"; 3]);
}

#[test]
fn a_page_can_read_the_retry_after_header_of_a_503() {
    let server = Server::start(&[("MIN_FREE_BYTES", "1EiB")]);
    server.wait_for_log("the disk is full; reports are refused", |_| true);
    let answer = server.post_with("origin: https://a.example\r\n", "{}");
    answer.assert_problem(503, "disk-full");
    assert_readable_from("https://a.example", &answer);
    assert!(answer.headers.contains_key("retry-after"));
    // A preflight request succeeds although the disk is full, because it stores nothing.
    assert_eq!(preflight(&mut server.connect(), "origin: https://a.example\r\n").status, 204);
}

#[test]
fn a_request_without_an_origin_gets_no_cors_headers() {
    let server = Server::start(&[]);
    let answer = server.post("{}");
    answer.assert_ok();
    assert_not_readable(&answer);
    assert!(!answer.headers.contains_key("vary"), "{answer:?}");
    preflight(&mut server.connect(), "").assert_problem(405, "method-not-allowed");
}

#[test]
fn a_preflight_allows_every_requested_header_and_stores_nothing() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let answer = preflight(&mut client, "origin: https://a.example\r\n");
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    assert_readable_from("https://a.example", &answer);
    assert_eq!(answer.headers["access-control-allow-methods"], "POST");
    assert_eq!(answer.headers["access-control-max-age"], "7200");
    for name in ["access-control-allow-headers", "access-control-allow-private-network"] {
        assert!(!answer.headers.contains_key(name), "{answer:?}");
    }
    let answer = preflight(
        &mut client,
        "origin: https://a.example\r\n\
         access-control-request-headers: content-encoding,content-type,x-any\r\n\
         access-control-request-private-network: true\r\n",
    );
    assert_eq!(answer.headers["access-control-allow-headers"], "content-encoding,content-type,x-any");
    assert_eq!(answer.headers["access-control-allow-private-network"], "true");
    client.post("{}").assert_ok();
    assert_eq!(server.stop(), ["{}"]);
}

#[test]
fn a_page_of_an_unlisted_origin_gets_a_403_that_it_cannot_read_and_nothing_is_stored() {
    let server = Server::start(&[("CORS_ALLOW_ORIGINS", "https://app.example.com, https://*.example.org")]);
    let mut client = server.connect();
    for origin in ["https://app.example.com", "https://a.b.example.org"] {
        let answer = client.post_with(&format!("origin: {origin}\r\n"), "{}");
        answer.assert_ok();
        assert_readable_from(origin, &answer);
        assert_eq!(preflight(&mut client, &format!("origin: {origin}\r\n")).status, 204);
    }
    for origin in ["https://evil.example", "https://example.org", "http://app.example.com", "null"] {
        let answer = client.post_with(&format!("origin: {origin}\r\n"), "{\"evil\":1}");
        answer.assert_problem(403, "origin-not-allowed");
        assert_not_readable(&answer);
        let answer = preflight(&mut client, &format!("origin: {origin}\r\n"));
        answer.assert_problem(403, "origin-not-allowed");
        assert_not_readable(&answer);
    }
    // The client gets the answer even if its body is larger than the socket buffers of the kernel.
    let long = client.post_with("origin: https://evil.example\r\n", vec![b' '; 1 << 20]);
    long.assert_problem(403, "origin-not-allowed");
    client.post("{}").assert_ok();
    assert_eq!(server.stop(), ["{}"; 3]);
}
