//! `GET /openapi.yaml` returns the OpenAPI document.

mod common;

use common::Server;

const DOCUMENT: &str = include_str!("../openapi.yaml");

#[test]
fn the_openapi_document_is_served_byte_for_byte_to_every_origin_without_a_write_key() {
    let server =
        Server::start(&[("CORS_ALLOW_ORIGINS", "https://app.example.com"), ("WRITE_KEYS", "0123456789abcdef")]);
    let mut client = server.connect();
    for origin in ["", "origin: https://docs.example.net\r\n"] {
        let answer = client.ask(&format!("GET /openapi.yaml HTTP/1.1\r\nhost: test\r\n{origin}\r\n"), b"");
        assert_eq!((answer.status, &*answer.body), (200, DOCUMENT));
        assert_eq!(answer.headers["content-type"], "application/yaml");
        assert_eq!(answer.headers["cache-control"], "max-age=3600");
        assert_eq!(answer.headers["access-control-allow-origin"], "*");
        assert_eq!(answer.headers["cross-origin-resource-policy"], "cross-origin");
    }
    let post = client.ask("POST /openapi.yaml HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\n", b"{}");
    post.assert_problem(405, "method-not-allowed");
    assert_eq!(post.headers["allow"], "GET, HEAD");
    assert!(server.stop().is_empty());
}
